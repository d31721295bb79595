"""torchvision's VGG-16, trained on ImageNet, up to its last pooling."""

from pathlib import Path

from salmask.data.normalisation import IMAGENET_MEAN, IMAGENET_STD
from salmask.encoders.weight_files import file_name
from salmask.saliency.localizers import FittedLocalizer
from salmask.saliency.localizers.assembly import from_file, from_torchvision


def vgg16(
    *, path: Path | None = None, download: bool = False, sha256: str | None = None
) -> FittedLocalizer:
    """torchvision's ImageNet VGG-16 (IMAGENET1K_V1).

    Args:
        path: torchvision's file, or a file of any other name in its layout, with or without the
            classifier.
        download: whether to download a missing file.
        sha256: of the file, 64 hex digits.

    Raises:
        UserError: as `weight_files.of_torchvision` and `weight_files.fitted` do.
    """
    from torchvision.models import VGG16_Weights

    entry = VGG16_Weights.IMAGENET1K_V1
    if path is not None and not download and path.name != file_name(entry.url):
        return from_file("vgg16", "vgg16", path, sha256, IMAGENET_MEAN, IMAGENET_STD)
    return from_torchvision("vgg16", "vgg16", entry, path, download, sha256)


LOCALIZER = vgg16
