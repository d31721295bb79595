import io

import numpy as np
from PIL import Image

from salmask.detection import drawing
from salmask.detection.objects import Detections
from tests.helpers.drawn_scenes import drawn, with_ignored


def test_the_sheet_has_objects_and_detections_with_high_scores(tmp_path):
    scene = with_ignored(drawn(tmp_path / "drawn", 3), True, False)
    boxes = np.array([[10.0, 10, 60, 50], [5, 5, 20, 20]])
    two = Detections(boxes, np.array([0.9, 0.4]), np.array([0, 1]))
    nothing = Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, dtype=np.int64))
    detections = [two, nothing, nothing]
    png = drawing.sheet(scene, detections, 2)
    assert png == drawing.sheet(scene, detections, 2)
    page = np.array(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
    assert page.shape == (2 * 320 + 3 * 8, 2 * 400 + 3 * 8, 3)  # the first and the last image
    edge = tuple(page[8 + 5 * 40, 416 + 5 * 10])  # left edge of the first box; 5 px for one
    assert edge == drawing._color(0)
    assert tuple(page[8 + 5 * 12, 416 + 5 * 5]) == (128, 128, 128)  # the second is not drawn
    left, top = scene.images[0].boxes[0, :2]
    corner = tuple(page[8 + int(5 * top), 8 + int(5 * left)])
    assert corner == (128, 128, 128)  # an ignored object is gray
    all_images = Image.open(io.BytesIO(drawing.sheet(scene, detections, 9)))
    assert all_images.size == (824, 3 * 320 + 4 * 8)
