"""Weights files of localizers: located or fetched, checked by hash, read, fitted to layers.

A download happens only when it is asked for, into torch.hub's folder of checkpoints. It is checked
beside its place and then moved there, so that one which fails or does not match leaves nothing.
"""

import re
from collections.abc import Callable, Sequence
from functools import partial
from itertools import takewhile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

import torch
from safetensors.torch import load_file
from torch import Tensor

from salmask.errors import UserError
from salmask.provenance import file_digest

LocatedFile = tuple[Path, str]  # a file and its sha256

# ---------------------------------------------------------------------------- where weights are


def local(path: Path, sha256: str | None, advice: str) -> LocatedFile:
    """The file at `path`, and its sha256 (hex), which is compared when one is given.

    Raises UserError, ending in `advice`, when there is no file or it is another one.
    """
    return path, checked(path, _full(sha256), advice)


def of_torchvision(url: str, path: Path | None, download: bool, sha256: str | None) -> LocatedFile:
    """A file that torchvision publishes at `url`: at `path`, else where torch.hub keeps it.

    The name of such a file ends in the first digits of its sha256. They are always checked, and
    the full `sha256` too when given. Raises UserError when the file is not there (saying what to
    put where), cannot be fetched, or is another one.
    """
    _either(path, download)
    name = file_name(url)
    digits = Path(name).stem.rpartition("-")[2]
    expected = _full(sha256) or digits
    if not expected.startswith(digits):
        raise UserError(f"localizer.sha256: {sha256} cannot be that of {name}, by its name")
    place = path or _kept(name)
    advice = f"put torchvision's file {name} there"
    if download and not place.exists():
        _download(url, place, expected, f"{advice} yourself", partial(_from_url, url))
    others = "leave localizer.path out and" if path else "name its place as localizer.path, or"
    advice += f" (from {url}), or {others} set localizer.download: true"
    return place, checked(place, expected, advice)


def of_timm(
    repository: str | None, name: str, path: Path | None, download: bool, sha256: str | None
) -> LocatedFile:
    """The file `name` of a repository on the model hub where timm keeps weights, or a local `path`.

    The hub publishes no hash beside the weights' name, so a download needs the full `sha256`.
    Raises UserError as `of_torchvision` does, and for a download without a hash.
    """
    _either(path, download)
    if path is not None:
        return local(path, sha256, "localizer.path must name a file in timm's layout")
    advice = "name a file in timm's layout (.safetensors or .pth) as localizer.path"
    if repository is None:
        raise UserError(f"localizer: timm publishes no weights for this arch: {advice}")
    if sha256 is None:
        raise UserError(
            f"localizer: no weights chosen: {advice} (such as {name} of {repository}), or set "
            f"localizer.download: true with localizer.sha256. The hub shows the sha256 on the "
            f"page of the file; `sha256sum` prints that of a copy you trust"
        )
    expected = _full(sha256)
    place = _kept(f"{repository.replace('/', '--')}-{expected[:8]}{Path(name).suffix}")
    if download and not place.exists():
        what = f"{name} of {repository}"
        _download(what, place, expected, advice, partial(_from_hub, repository, name))
    advice = f"put {name} of {repository} there, or set localizer.download: true"
    return place, checked(place, expected, advice)


def file_name(url: str) -> str:
    """The name of the file at a URL."""
    return Path(urlsplit(url).path).name


def checked(path: Path, digest: str, advice: str) -> str:
    """The file's sha256 (hex), which must begin with `digest`. Raises UserError with `advice`."""
    if not path.is_file():
        raise UserError(f"localizer: no weights at {path}: {advice}")
    found = file_digest(path)
    if not found.startswith(digest):
        raise UserError(f"localizer: {path} {_another(found, digest)}. Remove it; then {advice}")
    return found


def _another(found: str, digest: str) -> str:
    return (
        f"is not the expected file: its sha256 begins {found[:16]}, expected {digest[:16]} "
        f"(localizer.sha256, or the digits in the file's name)"
    )


def _kept(name: str) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / name


def _either(path: Path | None, download: bool) -> None:
    if path is not None and download:
        raise UserError(
            f"localizer: path ({path}) names a file that is there already, download: true fetches "
            f"one: give only one of the two"
        )


def _full(sha256: str | None) -> str:
    """A given sha256 in lower case, or an empty string, with which every digest begins."""
    if sha256 is None:
        return ""
    if not re.fullmatch("[0-9a-f]{64}", sha256.lower()):
        raise UserError(f"localizer.sha256: must be all 64 hex digits, got {sha256!r}")
    return sha256.lower()


def _from_url(url: str, folder: Path) -> Path:
    torch.hub.download_url_to_file(url, str(folder / file_name(url)))
    return folder / file_name(url)


def _from_hub(repository: str, name: str, folder: Path) -> Path:
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(repository, name, local_dir=folder))


def _download(
    what: str, place: Path, digest: str, advice: str, fetch: Callable[[Path], Path]
) -> None:
    """Lets `fetch` write into an empty folder; what it returns is checked and moved to `place`."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=place.parent) as folder:
            fetched = fetch(Path(folder))
            found = file_digest(fetched)
            if found.startswith(digest):
                fetched.replace(place)
    except Exception as error:  # each client of the network fails in its own ways
        raise UserError(
            f"localizer.download: {what} cannot be fetched to {place}: {error}. Offline, {advice}"
        ) from None
    if not found.startswith(digest):
        raise UserError(f"localizer.download: {what} {_another(found, digest)}. Nothing was kept")


# ------------------------------------------------------------------------------ what is in them


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors or .pth file, floats as float32; runs no code from the file.

    A checkpoint may hold them under `state_dict`. Raises UserError for anything else.
    """
    tensors: Any
    try:
        if path.suffix == ".safetensors":
            tensors = load_file(path)
        else:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{path} cannot be read as weights: {error}") from None
    tensors = tensors.get("state_dict", tensors) if isinstance(tensors, dict) else tensors
    if not isinstance(tensors, dict):
        raise UserError(f"{path} is not a state dict but a {type(tensors).__name__}")
    if others := [str(key) for key, value in tensors.items() if not isinstance(value, Tensor)]:
        raise UserError(f"{path} is not a state dict: {_some(others)} are no tensors")
    return {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}


def fitted(
    theirs: dict[str, Tensor], ours: dict[str, Tensor], path: Path, heads: Sequence[str] = ()
) -> dict[str, Tensor]:
    """`theirs` under the names of `ours`, in their order, when it fills them exactly.

    A prefix that all keys share (`module.`, `backbone.`) does not count, nor do the layers named
    in `heads`; batch norms may come without their counters. Raises UserError that names the keys.
    """
    theirs = _aligned(theirs, ours, heads)
    missing = [k for k in ours if k not in theirs and not _is_counter(k)]
    unknown = [k for k in theirs if k not in ours and not _is_counter(k)]
    shapes = [k for k in ours if k in theirs and theirs[k].shape != ours[k].shape]
    if missing or unknown or shapes:
        parts = (("missing", missing), ("unknown", unknown), ("of another shape", shapes))
        told = "; ".join(f"{what}: {_some(keys)}" for what, keys in parts if keys)
        raise UserError(f"{path} does not fit the architecture: {told}")
    return {k: theirs.get(k, ours[k]) for k in ours}


def _aligned(
    theirs: dict[str, Tensor], ours: dict[str, Tensor], heads: Sequence[str]
) -> dict[str, Tensor]:
    if not theirs.keys() & ours.keys():
        theirs = _moved(theirs, "")
    theirs = {k: v for k, v in theirs.items() if not f"{k}.".startswith(_prefixes(heads))}
    if not theirs.keys() & ours.keys():
        theirs = _moved(theirs, _shared(ours))
    return {_DENSE_LAYER.sub(r"\1\2", key): value for key, value in theirs.items()}


# torchvision's DenseNet files say `norm.1` where its model says `norm1`
_DENSE_LAYER = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")


def _moved(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The same tensors with `prefix` for the one that their keys share."""
    start = len(_shared(tensors))
    return {prefix + key[start:]: value for key, value in tensors.items()}


def _shared(tensors: dict[str, Tensor]) -> str:
    """The dotted prefix of all keys, without the parameters' own names: `module.`, or nothing."""
    layers = zip(*(key.split(".")[:-1] for key in tensors), strict=False)
    same = takewhile(lambda parts: len(set(parts)) == 1, layers)
    return "".join(f"{parts[0]}." for parts in same)


def _prefixes(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"{name}." for name in names)


def _is_counter(key: str) -> bool:
    return key.endswith("num_batches_tracked")


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:4]) + (f" and {len(keys) - 4} more" if len(keys) > 4 else "")
