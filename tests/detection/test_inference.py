import numpy as np
import torch
from torch import nn

from salmask.detection import rle
from salmask.detection.inference import detect
from tests.helpers.drawn_scenes import drawn


class FixedDetector(nn.Module):
    """Detects one object of the second class at the same place of every image."""

    def __init__(self, masks: bool) -> None:
        super().__init__()
        self.masks = masks

    def forward(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        assert [tuple(image.shape) for image in images] == [(3, 32, 40)]
        assert images[0].max() <= 1 and not self.training
        output = {
            "boxes": torch.tensor([[6.0, 4, 30, 20]]),
            "labels": torch.tensor([2]),
            "scores": torch.tensor([0.75]),
        }
        mask = torch.zeros(1, 1, 14, 14)
        mask[..., :7] = 1.0  # the left half of the box
        return [output | ({"masks": mask} if self.masks else {})]


def test_detections_are_in_pixels_of_the_file(tmp_path, job):
    images = drawn(tmp_path / "drawn", 3).images  # 64x80 px; the detector gets half the size
    detections = detect(FixedDetector(True), images, 32, 200, job)
    assert len(detections) == 3
    for of_image in detections:
        assert of_image.boxes.tolist() == [[12, 8, 60, 40]]
        assert of_image.labels.tolist() == [1] and of_image.scores.tolist() == [0.75]
        (mask,) = rle.decode(of_image.masks)
        assert mask.shape == (64, 80)
        rows, columns = np.nonzero(mask)
        edges = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert np.abs(np.array(edges) - (12, 8, 36, 40)).max() <= 2


def test_without_a_mask_head_there_are_no_masks(tmp_path, job):
    images = drawn(tmp_path / "drawn", 1).images
    assert detect(FixedDetector(False), images, 32, 200, job)[0].masks is None
