"""The ResNet-50 of torchvision's COCO Faster R-CNN (Chin et al. 2024, Table 5)."""

from functools import partial
from pathlib import Path

from salmask.data.normalisation import IMAGENET_MEAN, IMAGENET_STD
from salmask.encoders import weight_files
from salmask.saliency.localizers import FittedLocalizer
from salmask.saliency.localizers.assembly import assemble
from salmask.saliency.trunks import FASTER_RCNN


def coco_resnet50(
    *, path: Path | None = None, download: bool = False, sha256: str | None = None
) -> FittedLocalizer:
    """The backbone of the detector, with ImageNet's normalisation, as in the detector.

    Args:
        path: the detector's .pth file (COCO_V1). Its `backbone.body` is used.
        download: whether to download a missing file.
        sha256: of the file, 64 hex digits.

    Raises:
        UserError: as `weight_files.of_torchvision` and `weight_files.fitted` do.
    """
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

    url = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.url
    locate = partial(weight_files.of_torchvision, url, path, download, sha256)
    mean, std, prefix = IMAGENET_MEAN, IMAGENET_STD, "backbone.body."
    return assemble("coco_resnet50", "torchvision", FASTER_RCNN, mean, std, locate, prefix)


LOCALIZER = coco_resnet50
