"""torchvision's ResNet-50, trained on ImageNet."""

from pathlib import Path
from typing import Literal

from salmask.saliency.localizers import FittedLocalizer
from salmask.saliency.localizers.assembly import from_torchvision


def resnet50(
    *,
    weights: Literal["IMAGENET1K_V1", "IMAGENET1K_V2"] = "IMAGENET1K_V2",
    path: Path | None = None,
    download: bool = False,
    sha256: str | None = None,
) -> FittedLocalizer:
    """torchvision's ImageNet ResNet-50.

    Args:
        weights: version of the weights.
        path: the .pth file. By default in torch.hub's folder.
        download: whether to download a missing file.
        sha256: of the file, 64 hex digits.

    Raises:
        UserError: as `weight_files.of_torchvision` and `weight_files.fitted` do.
    """
    from torchvision.models import ResNet50_Weights

    return from_torchvision(
        "resnet50", "resnet50", ResNet50_Weights[weights], path, download, sha256
    )


LOCALIZER = resnet50
