"""Parts that several localizers share."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

from salmask.encoders import weight_files
from salmask.errors import UserError
from salmask.saliency.localizers import FittedLocalizer
from salmask.saliency.trunks import Arch, Localizer, Triple, build_layers, head_names, stride_of


def assemble(
    name: str,
    family: Literal["timm", "torchvision", "salmask"],
    arch: Arch,
    mean: Triple,
    std: Triple,
    locate: Callable[[], weight_files.LocatedFile],
    prefix: str = "",
) -> FittedLocalizer:
    """A localizer whose weights fit its layers.

    Args:
        name: of the localizer.
        family: library that defines the architecture.
        arch: the architecture, as in `Localizer`.
        mean: of each channel, for values in [0,1].
        std: of each channel, for values in [0,1].
        locate: finds or downloads the weights file. Called only after the architecture has been
            checked.
        prefix: only keys of the file that start with it are used.

    Raises:
        UserError: for a non-positive std, an unsuitable architecture, and as `locate` and
            `weight_files.fitted` do.
    """
    if not all(each > 0 for each in std):
        raise UserError(f"localizer.std: must be positive, got {std}")
    layers = build_layers(family, arch)
    stride = stride_of(layers, arch)
    path, digest = locate()
    content = weight_files.read(path).items()
    selected = {key.removeprefix(prefix): value for key, value in content if key.startswith(prefix)}
    tensors = weight_files.fitted(selected, layers.state_dict(), path, head_names(layers))
    return Localizer(name, family, arch, mean, std, stride, digest), tensors


def from_torchvision(
    name: str, arch: str, entry: Any, path: Path | None, download: bool, sha256: str | None
) -> FittedLocalizer:
    """A localizer with weights that torchvision publishes, and their normalisation.

    Args:
        name: of the localizer.
        arch: name of the network in torchvision.
        entry: member of one of torchvision's weights enums.
        path: as in `weight_files.of_torchvision`.
        download: as in `weight_files.of_torchvision`.
        sha256: as in `weight_files.of_torchvision`.
    """
    transforms = entry.transforms()
    mean, std = tuple(transforms.mean), tuple(transforms.std)
    locate = partial(weight_files.of_torchvision, entry.url, path, download, sha256)
    return assemble(name, "torchvision", arch, mean, std, locate)


def from_file(
    name: str, arch: str, path: Path, sha256: str | None, mean: Triple, std: Triple
) -> FittedLocalizer:
    """A localizer with weights from a local file in torchvision's layout for `arch`."""
    locate = partial(weight_files.local, path, sha256, "localizer.path must name a weights file")
    return assemble(name, "torchvision", arch, mean, std, locate)
