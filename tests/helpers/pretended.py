"""A simulated device, `pretended`. Its tensors are in main memory and the CPU computes with them,
but they refuse the operations that tensors on a GPU refuse: operations with tensors on the CPU, and
conversion to NumPy arrays. `WAITS` collects the operations for which the host waits for a GPU.

    python tests/helpers/pretended.py "pretrain --run blur" "evaluate --protocol knn --run blur"

runs stages on it in one process, in the current folder. SALMASK_DEVICE may name another device.
"""

import contextlib
import importlib
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._C import DispatchKey  # type: ignore[attr-defined]
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)

NAME = "pretended"
aten = torch.ops.aten
MOVES = (aten._to_copy.default, aten.copy_.default)
READS = (aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default,
         aten.equal.default)  # fmt: skip
WAITS: list[str] = []  # one text per wait, with the line of salmask that caused it
INDEXING = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)


class Away(Tensor):
    """A tensor on the simulated device; `here` is the tensor on the CPU that it wraps."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> "Away":
        assert type(here) is Tensor
        made: Away = Tensor._make_subclass(  # type: ignore[attr-defined]
            cls, here, dispatch_device=True, device_for_backend_keys=torch.device(NAME, 0)
        )
        made.here = here
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        return compute(func, args, kwargs or {})

    # what torch does in C++ for tensors of its own only
    def tolist(self) -> Any:
        _note_wait("tolist")
        return self.here.tolist()

    def new_tensor(self, data: Any, **options: Any) -> Tensor:
        return Away(self.here.new_tensor(data, **options))

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError(f"a tensor on the device `{NAME}` cannot become an array")

    __array__ = numpy

    def __reduce_ex__(self, protocol: Any) -> Any:  # a file's tensors are loaded to the CPU
        return self.here.detach().__reduce_ex__(protocol)

    def __format__(self, spec: str) -> str:
        return format(self.here.item() if self.dim() == 0 else repr(self), spec)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            made = Away(self.here.detach().clone(memory_format=torch.preserve_format))
            parameter = isinstance(self, nn.Parameter)
            memo[id(self)] = nn.Parameter(made, self.requires_grad) if parameter else made
        return memo[id(self)]


def compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Computes an operation on the CPU and puts the results on the device of its tensors.

    Raises RuntimeError when its tensors are on different devices.
    """
    if func is torch.ops.prim.device.default:
        return torch.device(NAME, 0)
    if _is_composite(func):  # in inference mode, torch does not decompose these
        with Pretence():
            return func.decompose(*args, **kwargs)
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    away = any(isinstance(t, Away) for t in tensors)
    if away and func not in MOVES and not (func in INDEXING and isinstance(args[0], Away)):
        apart = [tuple(t.shape) for t in tensors if not isinstance(t, Away) and t.dim()]
        if apart:
            raise RuntimeError(
                f"{func} mixes tensors on {NAME} with tensors on the CPU: shapes {apart}"
            )
    _note(func, tensors, kwargs)
    if func is aten.copy_.default:
        away = isinstance(args[0], Away)
    if kwargs.get("device") is not None:
        away = torch.device(kwargs["device"]).type == NAME
        kwargs = kwargs | ({"device": torch.device("cpu")} if away else {})
    mine = {id(_here(t)): t for t in tensors}
    result = func(*tree_map(_here, args), **tree_map(_here, kwargs))

    def place(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return mine.get(id(leaf)) if id(leaf) in mine else Away(leaf) if away else leaf

    return tree_map(place, result)


def _note(func: Any, tensors: list[Tensor], kwargs: dict[str, Any]) -> None:
    """Adds an operation to WAITS if the host would wait for it."""
    sides = [isinstance(t, Away) for t in tensors]
    if func in READS and any(sides):
        _note_wait(f"read by {func}")
    elif func in INDEXING and sides[0]:
        if any(t.dtype == torch.bool for t in tensors[1:]):
            _note_wait("boolean index")
        elif any(t.dim() and not isinstance(t, Away) for t in tensors[1:]):
            _note_wait("index from the CPU")
    elif func is aten._to_copy.default and kwargs.get("device") is not None:
        uploaded = torch.device(kwargs["device"]).type == NAME
        # A download is a wait even if it does not block: its result is read later.
        if uploaded != sides[0] and not (uploaded and kwargs.get("non_blocking")):
            _note_wait("upload" if uploaded else "download")
    elif func is aten.copy_.default and sides[0] != sides[-1]:
        _note_wait("upload" if sides[0] else "download")


def _note_wait(what: str) -> None:
    frames = [f for f in traceback.extract_stack() if "/salmask/" in f.filename]
    at = f"{Path(frames[-1].filename).name}:{frames[-1].name}" if frames else "outside salmask"
    WAITS.append(f"{what} in {at}")


def _here(leaf: Any) -> Any:
    return leaf.here if isinstance(leaf, Away) else leaf


def _is_composite(func: Any) -> bool:
    has = torch._C._dispatch_has_kernel_for_dispatch_key  # type: ignore[attr-defined]
    return has(func.name(), DispatchKey.CompositeImplicitAutograd)


class Pretence(TorchDispatchMode):
    """Operations that name the device, while it is entered."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        return compute(func, args, kwargs or {})


class Backend(_DummyBackendModule):
    """The module that torch requires for a device."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


def _moving(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """torch.tensor and torch.as_tensor through the CPU, because they bypass the dispatcher."""

    def made(data: Any, *, device: Any = None, **options: Any) -> Tensor:
        out = data if isinstance(data, Away) else make(data, **options)
        return out if device is None else out.to(device)

    return made


def _swapping(apply: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Module.to with parameters of the device's class instead of the CPU's."""

    def applied(*arguments: Any, **options: Any) -> nn.Module:
        torch.__future__.set_swap_module_params_on_conversion(True)
        try:
            return apply(*arguments, **options)
        finally:
            torch.__future__.set_swap_module_params_on_conversion(False)

    return applied


@contextlib.contextmanager
def pretence() -> Iterator[None]:
    """Registers the device, which is permanent, and computes on it."""
    _setup_privateuseone_for_python_backend(NAME, Backend())
    nn.Module._apply = _swapping(nn.Module._apply)  # type: ignore[method-assign]
    torch.tensor, torch.as_tensor = _moving(torch.tensor), _moving(torch.as_tensor)
    with Pretence():
        yield


def main() -> None:
    device = os.environ.setdefault("SALMASK_DEVICE", NAME)
    sys.path.insert(0, str(Path.cwd()))
    with pretence() if device == NAME else contextlib.nullcontext():
        for command in sys.argv[1:]:
            stage, *arguments = shlex.split(command)
            importlib.import_module(f"stages.{stage}").main(arguments, standalone_mode=False)


if __name__ == "__main__":
    main()
