"""Weights files of localizers: located or downloaded, checked by hash, read, fitted to layers.

Files are downloaded only on request, to torch.hub's folder of checkpoints.
"""

import pickle
import re
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from safetensors.torch import load_file
from torch import Tensor

from salmask.errors import UserError
from salmask.files import file_digest

LocatedFile = tuple[Path, str]  # path and sha256
_CONTAINERS = ("state_dict", "model", "teacher")  # keys under which programs save weights

# ------------------------------------------------------------------------------------- locating


def local(path: Path, sha256: str | None, advice: str) -> LocatedFile:
    """A local file.

    Raises UserError, which ends with `advice`, when the file is missing or has another hash.

    Args:
        path: of the file.
        sha256: expected, 64 hex digits; None for any.
        advice: what the user should do.
    """
    return path, checked(path, _full(sha256), advice)


def of_torchvision(url: str, path: Path | None, download: bool, sha256: str | None) -> LocatedFile:
    """A file that torchvision publishes.

    The names of these files end in the first digits of their sha256, which are always checked.

    Args:
        url: of the file.
        path: of a local copy; by default in torch.hub's folder.
        download: whether to download a missing file.
        sha256: expected, 64 hex digits; None for the digits in the name only.

    Raises:
        UserError: when the file is missing (with the place to put it), cannot be downloaded, or has
            another hash.
    """
    _either(path, download)
    name = file_name(url)
    digits = Path(name).stem.rpartition("-")[2]
    expected = _full(sha256) or digits
    if not expected.startswith(digits):
        raise UserError(f"localizer.sha256: {sha256} does not agree with the file name {name}")
    place = path or _kept(name)
    advice = f"put torchvision's file {name} there"
    if download and not place.exists():
        _download(url, url, place, expected, f"{advice} yourself")
    others = "remove localizer.path and" if path else "set localizer.path to its place, or"
    advice += f" (from {url}), or {others} set localizer.download: true"
    return place, checked(place, expected, advice)


def of_timm(
    repository: str | None, name: str, path: Path | None, download: bool, sha256: str | None
) -> LocatedFile:
    """A weights file of timm.

    Args:
        repository: on timm's model hub; None if timm publishes no weights.
        name: of the file in the repository.
        path: of a local copy.
        download: whether to download a missing file. The names on the hub contain no hash, so that
            this needs `sha256`.
        sha256: expected, 64 hex digits.

    Raises:
        UserError: as `of_torchvision` does, and for a download without `sha256`.
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
        from huggingface_hub import hf_hub_url

        _download(f"{name} of {repository}", hf_hub_url(repository, name), place, expected, advice)
    advice = f"put {name} of {repository} there, or set localizer.download: true"
    return place, checked(place, expected, advice)


def file_name(url: str) -> str:
    """The name of the file at a URL."""
    return Path(urlsplit(url).path).name


def checked(path: Path, digest: str, advice: str) -> str:
    """The sha256 of a file, which must start with `digest`. Raises UserError with `advice`."""
    if not path.is_file():
        raise UserError(f"localizer: no weights at {path}: {advice}")
    actual = file_digest(path)
    if not actual.startswith(digest):
        raise UserError(
            f"localizer: {path} is not the expected file: its sha256 starts with {actual[:16]}, "
            f"expected {digest[:16]} (localizer.sha256, or the digits in the file name). Remove "
            f"it; then {advice}"
        )
    return actual


def _kept(name: str) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / name


def _either(path: Path | None, download: bool) -> None:
    if path is not None and download:
        raise UserError(
            f"localizer: path ({path}) names a local file and download: true downloads one: "
            f"give only one of the two"
        )


def _full(sha256: str | None) -> str:
    """The sha256 in lower case; for None the empty string, with which every digest starts."""
    if sha256 is None:
        return ""
    if not re.fullmatch("[0-9a-f]{64}", sha256.lower()):
        raise UserError(f"localizer.sha256: must be all 64 hex digits, got {sha256!r}")
    return sha256.lower()


def _download(what: str, url: str, place: Path, digest: str, advice: str) -> None:
    """Downloads a file whose sha256 starts with `digest`. Any failure leaves no file."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(place), hash_prefix=digest)
    except Exception as error:  # of many types
        raise UserError(
            f"localizer.download: {what} cannot be downloaded to {place}: {error}. "
            f"Without a download: {advice}"
        ) from None


# -------------------------------------------------------------------------------------- reading


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors or .pth file, floats as float32. Runs no code from the file.

    The tensors may be under one of the keys `state_dict`, `model` or `teacher`.

    Raises:
        UserError: the file has other content, or a value is not finite.
    """
    tensors: Any
    try:
        if path.suffix == ".safetensors":
            tensors = load_file(path)
        else:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"{path} cannot be read as weights: it is damaged, or contains objects that are not "
            "tensors, which could run code. If you trust it, save its state dict alone: "
            "docs/imports-and-export.md has the lines"
        ) from None
    except Exception as error:
        raise UserError(f"{path} cannot be read as weights: {error}") from None
    for key in _CONTAINERS:
        inner = tensors.get(key) if isinstance(tensors, dict) else None
        if isinstance(inner, dict) or (key == "state_dict" and inner is not None):
            tensors = inner
    if not isinstance(tensors, dict):
        raise UserError(f"{path} is not a state dict but a {type(tensors).__name__}")
    if others := [str(key) for key, value in tensors.items() if not isinstance(value, Tensor)]:
        raise UserError(f"{path} is not a state dict: {_some(others)} are not tensors")
    if bad := non_finite(tensors):
        raise UserError(f"{path} has values that are NaN or infinite, in {_some(bad)}")
    return {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}


def non_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of the tensors with values that are NaN or infinite."""
    floating = {name: t for name, t in tensors.items() if t.is_floating_point()}
    return [name for name, tensor in floating.items() if not tensor.isfinite().all()]


def fitted(
    theirs: dict[str, Tensor], ours: dict[str, Tensor], path: Path, heads: Sequence[str] = ()
) -> dict[str, Tensor]:
    """The tensors of a file under the names of an architecture, and in its order.

    A prefix that all keys share (`module.`, `backbone.`) is ignored. The counters of batch norms
    may be missing.

    Args:
        theirs: tensors of the file.
        ours: tensors of the architecture.
        path: of the file, for messages.
        heads: names of layers to ignore.

    Raises:
        UserError: with the keys that are missing, unknown or of another shape.
    """
    theirs = _aligned(theirs, ours, heads)
    missing = [k for k in ours if k not in theirs and not _is_counter(k)]
    unknown = [k for k in theirs if k not in ours and not _is_counter(k)]
    shapes = [k for k in ours if k in theirs and theirs[k].shape != ours[k].shape]
    if missing or unknown or shapes:
        parts = (("missing", missing), ("unknown", unknown), ("of another shape", shapes))
        problems = "; ".join(f"{what}: {_some(keys)}" for what, keys in parts if keys)
        raise UserError(f"{path} does not fit the architecture: {problems}")
    return {k: theirs.get(k, ours[k]) for k in ours}


def _aligned(
    theirs: dict[str, Tensor], ours: dict[str, Tensor], heads: Sequence[str]
) -> dict[str, Tensor]:
    if not theirs.keys() & ours.keys():
        theirs = _with_prefix(theirs, "")
    prefixes = tuple(f"{head}." for head in heads)
    theirs = {k: v for k, v in theirs.items() if not f"{k}.".startswith(prefixes)}
    if not theirs.keys() & ours.keys():
        theirs = _with_prefix(theirs, _shared_prefix(ours))
    return {_DENSE_LAYER.sub(r"\1\2", key): value for key, value in theirs.items()}


# torchvision's DenseNet files have `norm.1` where its model has `norm1`
_DENSE_LAYER = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")


def _with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Replaces the prefix that all keys share."""
    start = len(_shared_prefix(tensors))
    return {prefix + key[start:]: value for key, value in tensors.items()}


def _shared_prefix(tensors: dict[str, Tensor]) -> str:
    """The dotted prefix that all keys share, such as `module.`; it may be empty."""
    layers = zip(*(key.split(".")[:-1] for key in tensors), strict=False)
    same = takewhile(lambda parts: len(set(parts)) == 1, layers)
    return "".join(f"{parts[0]}." for parts in same)


def _is_counter(key: str) -> bool:
    return key.endswith("num_batches_tracked")


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:4]) + (f" and {len(keys) - 4} more" if len(keys) > 4 else "")
