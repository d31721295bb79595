"""The device and the precision of computations."""

import contextlib
import os
from collections.abc import Iterator
from functools import cache
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.backends import cudnn

from salmask.errors import UserError

Module = TypeVar("Module", bound=nn.Module)
Precision = Literal["auto", "float32", "bfloat16"]
_CUBLAS = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # 8 buffers of 4096 KiB: cuBLAS is deterministic


def pick_device() -> torch.device:
    """The device named in SALMASK_DEVICE, else the first CUDA device, else the CPU.

    Raises UserError for an unknown or missing device.
    """
    has_gpu = torch.cuda.is_available()
    name = os.environ.get("SALMASK_DEVICE") or ("cuda" if has_gpu else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"SALMASK_DEVICE: {name} is not a device; use `cpu` or `cuda`") from None
    if device.type == "cuda" and not has_gpu:
        raise UserError(
            f"SALMASK_DEVICE: {name}: torch {torch.__version__} finds no GPU on this machine; "
            "use `cpu`"
        )
    return device


def place(module: Module, device: torch.device) -> Module:
    """Moves a module to a device, in place, with the memory layout of the fastest convolutions."""
    module.to(device)
    module.to(memory_format=torch.channels_last)
    return module


@cache
@torch.inference_mode(False)
def constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """A float32 tensor of fixed numbers. It is copied to each device once: every copy from the CPU
    makes the host wait for a GPU. Callers must not change it."""
    return torch.tensor(values, dtype=torch.float32, device=device)


def autocast(
    device: torch.device, precision: Precision
) -> contextlib.AbstractContextManager[object]:
    """A context for forward passes. `auto` is bfloat16 on CUDA and float32 elsewhere."""
    if computes_in_bfloat16(device, precision):
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


def computes_in_bfloat16(device: torch.device, precision: Precision) -> bool:
    """Whether a precision is bfloat16 on a device."""
    return precision == "bfloat16" or (precision == "auto" and device.type == "cuda")


def inference(
    device: torch.device, precision: Precision
) -> contextlib.AbstractContextManager[object]:
    """A context for networks that are not trained: `autocast`, but float32 without TensorFloat-32,
    which would make its results differ between GPU and CPU."""
    stack = contextlib.ExitStack()
    stack.enter_context(cudnn.flags(enabled=True, allow_tf32=False))
    stack.enter_context(autocast(device, precision))
    return stack


@contextlib.contextmanager
def deterministic(enabled: bool) -> Iterator[None]:
    """A context in which PyTorch uses deterministic algorithms only, and cuBLAS too.

    Operations that have none raise RuntimeError. cuBLAS reads its variable when a process uses it
    for the first time, so the context must begin before that.

    Args:
        enabled: False changes nothing.
    """
    if not enabled:
        yield
        return
    name, value = _CUBLAS
    variable = os.environ.get(name)
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        os.environ[name] = value
        torch.use_deterministic_algorithms(True)
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
        if variable is None:
            del os.environ[name]
        else:
            os.environ[name] = variable
