"""Weights from a local file in torchvision's layout."""

from pathlib import Path

from salmask.data.normalisation import IMAGENET_MEAN, IMAGENET_STD
from salmask.saliency.localizers import FittedLocalizer
from salmask.saliency.localizers.assembly import from_file
from salmask.saliency.trunks import Triple


def file(
    *,
    path: Path,
    arch: str,
    sha256: str | None = None,
    mean: Triple = IMAGENET_MEAN,
    std: Triple = IMAGENET_STD,
) -> FittedLocalizer:
    """A network of torchvision with local weights.

    Args:
        path: .safetensors or .pth file, with or without a classifier, and with or without a prefix
            that all keys share.
        arch: name of the network in torchvision.
        sha256: of the file, 64 hex digits.
        mean: of each channel, for values in [0,1].
        std: of each channel, for values in [0,1].

    Raises:
        UserError: as `weight_files.local` and `weight_files.fitted` do.
    """
    return from_file("file", arch, path, sha256, mean, std)


LOCALIZER = file
