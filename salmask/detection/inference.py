"""What a trained detector finds, in the pixels of the images as they are stored."""

from collections.abc import Sequence

import numpy as np
import torch
from pycocotools import mask as coco_masks
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image

from salmask.detection.batches import whole_images
from salmask.detection.detector import Detector
from salmask.detection.objects import Detections, Picture, Rle
from salmask.devices import Precision, autocast
from salmask.distributed import gather_objects, local_rows
from salmask.job import Job
from salmask.progress import progress


@torch.inference_mode()
def search(
    detector: Detector,
    pictures: Sequence[Picture],
    short_side: int,
    long_side: int,
    job: Job,
    precision: Precision = "auto",
) -> list[Detections]:
    """The detections of each picture, in order, one image at a time. Several processes search a
    part each, and all get everything."""
    detector.eval()
    found = []
    mine = [pictures[place] for place in local_rows(torch.arange(len(pictures))).tolist()]
    images = whole_images(mine, short_side, long_side, job.workers)
    with progress("detections", len(mine)) as bar:
        for picture, image in zip(mine, images, strict=True):
            with autocast(job.device, precision):
                [seen] = detector([image.to(job.device).float() / 255])
            found.append(_stored(seen, image.shape[1:], picture))
            bar.advance(1)
    return gather_objects(found)


def _stored(seen: dict[str, Tensor], size: Sequence[int], picture: Picture) -> Detections:
    """From the pixels of an image of `size` (height, width) to those of its file."""
    seen = {name: value.cpu() for name, value in seen.items()}
    scale = torch.tensor([picture.width / size[1], picture.height / size[0]] * 2)
    boxes = seen["boxes"] * scale
    masks = None
    if "masks" in seen:
        masks = tuple(
            _mask(seen["masks"][i : i + 1], boxes[i : i + 1], picture) for i in range(len(boxes))
        )
    return Detections(
        boxes.double().numpy(), seen["scores"].double().numpy(), seen["labels"].numpy() - 1, masks
    )


def _mask(share: Tensor, box: Tensor, picture: Picture) -> Rle:
    """One mask (1,1,14,14) over its box (1,4), where it is more likely than not."""
    drawn = paste_masks_in_image(share, box, (picture.height, picture.width))[0, 0] > 0.5
    return dict(coco_masks.encode(np.asfortranarray(drawn.numpy(), dtype=np.uint8)))
