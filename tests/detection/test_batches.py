from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from salmask.detection.batches import (
    Resizing,
    example,
    read,
    resized,
    trainable,
    training_batches,
    whole_images,
)
from tests.helpers.drawn_scenes import drawn, with_ignored


@pytest.fixture
def scene(tmp_path):
    return drawn(tmp_path / "drawn", 4)


@pytest.mark.parametrize(
    ("height", "width", "wanted"),
    [
        (480, 640, (800, 1067)),
        (640, 480, (1067, 800)),
        (400, 1200, (444, 1333)),
        (8, 8, (800, 800)),
    ],
)
def test_the_short_side_is_as_asked_unless_the_long_one_is_at_its_limit(height, width, wanted):
    assert resized(height, width, 800, 1333) == wanted


@pytest.mark.parametrize("flip", [False, True])
def test_boxes_and_masks_stay_on_their_objects(scene, flip):
    picture = scene.pictures[0]
    image, target = example(picture, (128, 120), flip, True)
    assert image.shape == (3, 128, 120) and target["labels"].tolist() == [1, 2]
    for box, mask, channel in zip(target["boxes"], target["masks"], (0, 2), strict=True):
        strong = image[channel].int() - image[2 - channel].int() > 60
        assert (strong & (mask > 0)).sum() > 0.9 * strong.sum()
        assert (strong & (mask > 0)).sum() > 0.9 * (mask > 0).sum()
        rows, columns = np.nonzero(mask.numpy())
        edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert box.tolist() == pytest.approx(edges, abs=1.5)


def test_crowds_are_never_learned_difficult_objects_if_asked_for(scene):
    one = with_ignored(scene, True, False)
    assert [len(p) for p in trainable(one)] == [1, 2, 2]  # the last image shows nothing
    assert trainable(one)[0].labels.tolist() == [1] and len(trainable(one)[0].masks) == 1
    voc = replace(one, rule="voc")
    assert [len(p) for p in trainable(voc)] == [2, 2, 2]
    assert [len(p) for p in trainable(voc, difficult=False)] == [1, 2, 2]
    both = with_ignored(scene, True, True)
    assert [len(p) for p in trainable(both)] == [2, 2]


OPTIONS = {"seed": 0, "batch": 2, "masks": True, "workers": 0}
LOOKS = Resizing((48, 64, 80), 200, 0.5)


def batches(pictures, start, end, **more):
    return list(training_batches(pictures, LOOKS, start=start, end=end, **(OPTIONS | more)))


def same(a, b):
    return len(a) == len(b) and all(
        torch.equal(x[0], y[0]) and all(torch.equal(x[1][n], y[1][n]) for n in x[1])
        for one, other in zip(a, b, strict=True)
        for x, y in zip(one, other, strict=True)
    )


def test_a_batch_depends_on_its_iteration_alone(scene):
    pictures = trainable(scene)
    whole = batches(pictures, 0, 6)
    assert same(whole[4:], batches(pictures, 4, 6))
    assert same(whole[2:], batches(pictures, 2, 6, workers=2))
    assert not same(whole[:3], whole[3:])  # two epochs of three images
    assert not same(whole, batches(pictures, 0, 6, seed=1))


def test_every_epoch_shows_every_picture_once_and_looks_vary(tmp_path):
    pictures = trainable(drawn(tmp_path / "many", 9))
    shown = [one for batch in batches(pictures, 0, 40) for one in batch]
    sides = [min(image.shape[1:]) for image, _ in shown]
    assert {s: 15 < sides.count(s) < 40 for s in (48, 64, 80)} == dict.fromkeys((48, 64, 80), True)
    left = {  # of the object, in shares of the width: which image it is, and whether mirrored
        place: [round(float(t["boxes"][0, 0] / i.shape[2]), 2) for i, t in shown[place : place + 8]]
        for place in range(0, 80, 8)
    }
    plain = {i: p.boxes[0, 0] / p.width for i, p in enumerate(pictures)}
    turned = {i: 1 - p.boxes[0, 2] / p.width for i, p in enumerate(pictures)}
    mirrored = 0
    for seen in left.values():
        ids = []
        for value in seen:
            fits = [
                i for i in plain if abs(plain[i] - value) < 0.02 or abs(turned[i] - value) < 0.02
            ]
            ids += fits
            mirrored += all(abs(plain[i] - value) > 0.02 for i in plain)
        assert set(ids) == set(range(8))
    assert mirrored > 15


def test_the_order_is_another_in_every_epoch(tmp_path):
    pictures = trainable(drawn(tmp_path / "many", 9))
    plain = Resizing((64,), 200, 0.0)
    found = training_batches(pictures, plain, start=0, end=8, **OPTIONS)
    shown = [image for batch in found for image, _ in batch]
    first, second = shown[:8], shown[8:]
    assert not all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(any(torch.equal(a, b) for b in second) for a in first)


def test_no_flip_and_always_flip(scene):
    pictures = trainable(scene)
    for flip, left in ((0.0, pictures[0].boxes[0, 0]), (1.0, 80 - pictures[0].boxes[0, 2])):
        found = training_batches(
            pictures[:1], Resizing((64,), 200, flip), start=0, end=3, **OPTIONS
        )
        for batch in found:
            assert all(float(t["boxes"][0, 0]) == left for _, t in batch)


def test_a_picture_that_broke_or_changed_is_gray_and_told(scene, caplog):
    picture = scene.pictures[0]
    picture.file.write_bytes(b"no image")
    Image.new("RGB", (5, 5)).save(scene.pictures[1].file)
    assert read(picture).size == (80, 64) and read(picture).getextrema()[0] == (124, 124)
    assert read(scene.pictures[1]).size == (80, 64)
    assert caplog.text.count("a gray image stands in") == 2
    assert "it is 5x5 px, not 80x64" in caplog.text


def test_all_pictures_are_searched_in_order(scene):
    found = list(whole_images(scene.pictures, 32, 36, workers=0))
    assert [tuple(image.shape) for image in found] == 4 * [(3, 29, 36)]
    assert not torch.equal(found[0], found[1])
