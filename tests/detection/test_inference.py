import numpy as np
import torch
from pycocotools import mask as rle
from torch import nn

from salmask.detection.inference import search
from tests.helpers.drawn_scenes import drawn


class Finder(nn.Module):
    """Finds one object of the second class at the same place of every image."""

    def __init__(self, masks: bool) -> None:
        super().__init__()
        self.masks = masks

    def forward(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        assert [tuple(image.shape) for image in images] == [(3, 32, 40)]
        assert images[0].max() <= 1 and not self.training
        found = {
            "boxes": torch.tensor([[6.0, 4, 30, 20]]),
            "labels": torch.tensor([2]),
            "scores": torch.tensor([0.75]),
        }
        share = torch.zeros(1, 1, 14, 14)
        share[..., :7] = 1.0  # the left half of the box
        return [found | ({"masks": share} if self.masks else {})]


def test_detections_are_told_in_the_pixels_of_the_file(tmp_path, job):
    pictures = drawn(tmp_path / "drawn", 3).pictures  # 64 px high, 80 wide; searched at half of it
    found = search(Finder(True), pictures, 32, 200, job)
    assert len(found) == 3
    for seen in found:
        assert seen.boxes.tolist() == [[12, 8, 60, 40]]
        assert seen.labels.tolist() == [1] and seen.scores.tolist() == [0.75]
        drawn_mask = rle.decode(seen.masks[0])
        assert drawn_mask.shape == (64, 80)
        rows, columns = np.nonzero(drawn_mask)
        edges = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert np.abs(np.array(edges) - (12, 8, 36, 40)).max() <= 2


def test_without_a_mask_head_there_are_no_masks(tmp_path, job):
    pictures = drawn(tmp_path / "drawn", 1).pictures
    assert search(Finder(False), pictures, 32, 200, job)[0].masks is None
