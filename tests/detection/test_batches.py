from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from salmask.detection.batches import (
    Resizing,
    example,
    inference_images,
    read_image,
    resized,
    trainable,
    training_batches,
)
from tests.helpers.drawn_scenes import drawn, with_ignored


@pytest.fixture
def scene(tmp_path):
    return drawn(tmp_path / "drawn", 4)


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (480, 640, (800, 1067)),
        (640, 480, (1067, 800)),
        (400, 1200, (444, 1333)),
        (8, 8, (800, 800)),
    ],
)
def test_the_short_side_is_as_given_unless_the_long_side_would_be_too_long(height, width, expected):
    assert resized(height, width, 800, 1333) == expected


@pytest.mark.parametrize("flip", [False, True])
def test_boxes_and_masks_stay_on_their_objects(scene, flip):
    pixels, target = example(scene.images[0], (128, 120), flip, True)
    assert pixels.shape == (3, 128, 120) and target["labels"].tolist() == [1, 2]
    for box, mask, channel in zip(target["boxes"], target["masks"], (0, 2), strict=True):
        coloured = pixels[channel].int() - pixels[2 - channel].int() > 60
        assert (coloured & (mask > 0)).sum() > 0.9 * coloured.sum()
        assert (coloured & (mask > 0)).sum() > 0.9 * (mask > 0).sum()
        rows, columns = np.nonzero(mask.numpy())
        edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert box.tolist() == pytest.approx(edges, abs=1.5)


def test_crowds_are_never_trained_on_and_difficult_objects_optionally(scene):
    one = with_ignored(scene, True, False)
    assert [len(i) for i in trainable(one)] == [1, 2, 2]  # the last image has no object
    assert trainable(one)[0].labels.tolist() == [1] and len(trainable(one)[0].masks) == 1
    voc = replace(one, rule="voc")
    assert [len(i) for i in trainable(voc)] == [2, 2, 2]
    assert [len(i) for i in trainable(voc, difficult=False)] == [1, 2, 2]
    both = with_ignored(scene, True, True)
    assert [len(i) for i in trainable(both)] == [2, 2]


CPU = torch.device("cpu")
OPTIONS = {"seed": 0, "batch": 2, "masks": True, "workers": 0, "device": CPU}
RESIZING = Resizing((48, 64, 80), 200, 0.5)


def batches(images, start, end, **more):
    return list(training_batches(images, RESIZING, start=start, end=end, **(OPTIONS | more)))


def same(a, b):
    """Whether two lists of batches are equal."""
    return len(a) == len(b) and all(
        torch.equal(x[0], y[0]) and all(torch.equal(x[1][n], y[1][n]) for n in x[1])
        for one, other in zip(a, b, strict=True)
        for x, y in zip(one, other, strict=True)
    )


def test_a_batch_depends_on_its_iteration_only(scene):
    images = trainable(scene)
    all_batches = batches(images, 0, 6)
    assert same(all_batches[4:], batches(images, 4, 6))
    assert same(all_batches[2:], batches(images, 2, 6, workers=2))
    assert not same(all_batches[:3], all_batches[3:])  # two epochs of three images
    assert not same(all_batches, batches(images, 0, 6, seed=1))


def test_every_epoch_has_every_image_once_and_sizes_and_flips_vary(tmp_path):
    images = trainable(drawn(tmp_path / "many", 9))
    examples = [item for batch in batches(images, 0, 40) for item in batch]
    sides = [min(pixels.shape[1:]) for pixels, _ in examples]
    assert all(15 < sides.count(side) < 40 for side in (48, 64, 80))
    # the left edge of the first object, as a share of the width, identifies an image and its flip
    original = {i: image.boxes[0, 0] / image.width for i, image in enumerate(images)}
    flipped = {i: 1 - image.boxes[0, 2] / image.width for i, image in enumerate(images)}
    flips = 0
    for start in range(0, 80, 8):
        ids = []
        for pixels, target in examples[start : start + 8]:
            left = round(float(target["boxes"][0, 0] / pixels.shape[2]), 2)
            ids += [
                i
                for i in original
                if abs(original[i] - left) < 0.02 or abs(flipped[i] - left) < 0.02
            ]
            flips += all(abs(original[i] - left) > 0.02 for i in original)
        assert set(ids) == set(range(8))
    assert flips > 15


def test_every_epoch_has_another_order(tmp_path):
    images = trainable(drawn(tmp_path / "many", 9))
    unflipped = Resizing((64,), 200, 0.0)
    two_epochs = training_batches(images, unflipped, start=0, end=8, **OPTIONS)
    pixels = [item for batch in two_epochs for item, _ in batch]
    first, second = pixels[:8], pixels[8:]
    assert not all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(any(torch.equal(a, b) for b in second) for a in first)


def test_no_flip_and_always_flip(scene):
    images = trainable(scene)[:1]
    for flip, left in ((0.0, images[0].boxes[0, 0]), (1.0, 80 - images[0].boxes[0, 2])):
        resizing = Resizing((64,), 200, flip)
        for batch in training_batches(images, resizing, start=0, end=3, **OPTIONS):
            assert all(float(t["boxes"][0, 0]) == left for _, t in batch)


def test_a_broken_or_changed_image_is_replaced_by_gray_with_one_warning(scene, caplog):
    broken, changed = scene.images[:2]
    broken.file.write_bytes(b"no image")
    Image.new("RGB", (5, 5)).save(changed.file)
    for _ in range(2):
        assert read_image(broken).size == (80, 64)
        assert read_image(broken).getextrema()[0] == (124, 124)
        assert read_image(changed).size == (80, 64)
    assert caplog.text.count("a gray image replaces it") == 2
    assert "it has 5x5 px, not 80x64" in caplog.text


@pytest.mark.parametrize("workers", [0, 2])
def test_test_images_come_in_order(scene, workers):
    images = list(inference_images(scene.images, 32, 36, workers=workers, device=CPU))
    assert [tuple(image.shape) for image in images] == 4 * [(3, 29, 36)]
    for image, annotated in zip(images, scene.images, strict=True):
        assert torch.equal(image, example(annotated, (29, 36), False, False)[0])
