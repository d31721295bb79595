"""Runs a trained detector over test images."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from salmask.detection import rle
from salmask.detection.batches import inference_images
from salmask.detection.objects import AnnotatedImage, Detections, Rle
from salmask.devices import Precision, autocast
from salmask.distributed import gather_objects, local_rows
from salmask.job import Job
from salmask.progress import progress

if TYPE_CHECKING:
    from salmask.detection.detector import Detector


@torch.inference_mode()
def detect(
    detector: "Detector",
    images: Sequence[AnnotatedImage],
    short_side: int,
    long_side: int,
    job: Job,
    precision: Precision = "auto",
) -> list[Detections]:
    """The detections in each image, in order, in pixels of the image files.

    Several processes share the images, and all of them get all detections.

    Args:
        detector: trained; it is put into evaluation mode.
        images: test images; one is processed at a time.
        short_side: of an image in the detector, px.
        long_side: maximum of the long side, px.
        job: device and number of decoding processes.
        precision: of the convolutions.
    """
    detector.eval()
    detections = []
    part = [images[index] for index in local_rows(torch.arange(len(images))).tolist()]
    pixels = inference_images(part, short_side, long_side, workers=job.workers, device=job.device)
    with progress("detections", len(part)) as bar:
        for image, resized in zip(part, pixels, strict=True):
            with autocast(job.device, precision):
                [output] = detector([resized.float() / 255])
            detections.append(_in_file_pixels(output, resized.shape[1:], image))
            bar.advance(1)
    return gather_objects(detections)


def _in_file_pixels(
    output: dict[str, Tensor], size: Sequence[int], image: AnnotatedImage
) -> Detections:
    """The detector's output for an image of `size` (height, width), in pixels of its file."""
    output = {name: value.cpu() for name, value in output.items()}
    scale = torch.tensor([image.width / size[1], image.height / size[0]] * 2)
    boxes = output["boxes"] * scale
    masks = None
    if "masks" in output:
        masks = tuple(
            _mask(output["masks"][i : i + 1], boxes[i : i + 1], image) for i in range(len(boxes))
        )
    scores, labels = output["scores"].double().numpy(), output["labels"].numpy() - 1
    return Detections(boxes.double().numpy(), scores, labels, masks)


def _mask(probabilities: Tensor, box: Tensor, image: AnnotatedImage) -> Rle:
    """One mask: probabilities (1,1,14,14) over the box (1,4), thresholded at 0.5."""
    from torchvision.models.detection.roi_heads import paste_masks_in_image  # slow to import

    pasted = paste_masks_in_image(probabilities, box, (image.height, image.width))
    [mask] = rle.encode((pasted[0] > 0.5).numpy())
    return mask
