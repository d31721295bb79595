"""Batches of views: their order, their crops, and resuming."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data._utils.pin_memory import pin_memory
from torchvision.transforms import functional as reference

from salmask.data import decoded
from salmask.data.decoded import rows_to_keep
from salmask.data.loader import Schedule, evaluation_images, training_views
from salmask.params.view import ViewConfig

CPU = torch.device("cpu")
CONFIG = ViewConfig(size=16, grid=4, crop=(0.3, 0.9))


def ramp(height: int, width: int) -> np.ndarray:
    """Red is a ramp from left to right, green from top to bottom; blue is 100."""
    pixels = np.full((height, width, 3), 100.0)
    pixels[..., 0] = 255 * (np.arange(width) + 0.5) / width
    pixels[..., 1] = (255 * (np.arange(height) + 0.5) / height)[:, None]
    return np.round(pixels).astype(np.uint8)


@pytest.fixture
def ramps(make_manifest):
    sizes = [(64, 96), (80, 80), (96, 64), (64, 64), (70, 90)]
    return make_manifest([(ramp(*s), 0, "train") for s in sizes])


def batches(manifest, images, start=(0, 0), workers=0, epochs=2, config=CONFIG, **options):
    schedule = Schedule(7, manifest.ids("train"), 2, epochs)
    return list(
        training_views(
            manifest,
            config,
            schedule,
            images=images,
            device=CPU,
            workers=workers,
            start=start,
            **options,
        )
    )


def same(a, b) -> bool:
    return (
        (a.epoch, a.step) == (b.epoch, b.step)
        and torch.equal(a.ids, b.ids)
        and all(
            torch.equal(getattr(a, part)[branch], getattr(b, part)[branch])
            for part in ("crops", "boxes", "flips")
            for branch in a.crops
        )
    )


# ------------------------------------------------------------------------------------ schedule


@given(st.integers(1, 40), st.integers(1, 10), st.integers(1, 3), st.integers(0, 50))
def test_an_epoch_visits_each_sample_at_most_once_and_drops_the_rest(count, batch, epochs, seed):
    schedule = Schedule(seed, torch.arange(count) * 3, batch, epochs)
    keys = list(schedule.batches(0, 0))
    assert schedule.steps_per_epoch == count // batch
    assert [t[:2] for t in keys] == [(e, s) for e in range(epochs) for s in range(count // batch)]
    for epoch in range(epochs):
        ids = torch.cat([t[2] for t in keys if t[0] == epoch] or [torch.tensor([])]).tolist()
        assert len(ids) == len(set(ids)) == count // batch * batch
        assert set(ids) <= {3 * i for i in range(count)}


@given(st.integers(4, 30), st.integers(1, 4), st.data())
def test_a_schedule_resumes_anywhere(count, batch, data):
    schedule = Schedule(1, torch.arange(count), batch, 3)
    keys = list(schedule.batches(0, 0))
    at = data.draw(st.integers(0, len(keys) - 1))
    again = list(schedule.batches(*divmod(at, schedule.steps_per_epoch)))
    assert len(again) == len(keys) - at
    assert all(
        a[:2] == b[:2] and torch.equal(a[2], b[2]) for a, b in zip(again, keys[at:], strict=True)
    )


# ------------------------------------------------------------------------------ training views


@pytest.mark.parametrize(("images", "tolerance"), [("stream", 3.0), ("resident", 3.0)])
def test_a_crop_shows_its_box(ramps, images, tolerance):
    """Red and green of the ramp give the position of each pixel of a view in the image."""
    centre = (torch.arange(16) + 0.5) / 16
    flipped = set()
    for batch in batches(ramps, images):
        for branch in ("query", "key"):
            for crop, box, flip in zip(
                batch.crops[branch], batch.boxes[branch], batch.flips[branch], strict=True
            ):
                y, x, h, w = box.tolist()
                red = 255 * (x + w * (centre.flip(0) if flip else centre))
                green = 255 * (y + h * centre)
                inner = slice(1, -1)  # not the border of the image, where the averages differ
                ours = crop.float()[:, inner, inner]
                torch.testing.assert_close(
                    ours[0], red[inner].expand(14, 14), atol=tolerance, rtol=0
                )
                torch.testing.assert_close(
                    ours[1], green[inner, None].expand(14, 14), atol=tolerance, rtol=0
                )
                torch.testing.assert_close(ours[2], torch.full((14, 14), 100.0), atol=1, rtol=0)
                flipped.add(bool(flip))
    assert flipped == {True, False}


@pytest.mark.parametrize("images", ["stream", "resident"])
@pytest.mark.parametrize("start", [(0, 1), (1, 0)])
def test_training_resumes_at_any_step(ramps, images, start):
    whole = batches(ramps, images)
    rest = batches(ramps, images, start=start)
    at = start[0] * 2 + start[1]
    assert len(rest) == len(whole) - at == 4 - at
    assert all(same(a, b) for a, b in zip(rest, whole[at:], strict=True))


def test_worker_processes_change_nothing(ramps):
    without, with_workers = (batches(ramps, "stream", workers=n, epochs=1) for n in (0, 2))
    assert all(same(a, b) for a, b in zip(without, with_workers, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_images_in_memory_give_the_same_bytes(ramps, workers, monkeypatch):
    """Kept, streamed, and a mixture: images of 64 px and of 90 px at a view of 40 px."""
    config = ViewConfig(size=40, grid=4, crop=(0.3, 0.9))
    assert rows_to_keep(ramps, ramps.ids("train"), 40).tolist() == [0, 2, 3, 4]
    streamed, kept = (
        batches(ramps, i, workers=workers, epochs=3, config=config) for i in ("stream", "auto")
    )
    assert all(same(a, b) for a, b in zip(streamed, kept, strict=True))
    monkeypatch.setattr(decoded, "free_memory", lambda device: 1000)
    assert rows_to_keep(ramps, ramps.ids("train"), 40).tolist() == []
    tight = batches(ramps, "auto", workers=workers, epochs=3, config=config)
    assert all(same(a, b) for a, b in zip(streamed, tight, strict=True))


def test_an_image_in_memory_is_decoded_once(ramps, monkeypatch):
    decoded_rows = []
    read = decoded.read_image
    monkeypatch.setattr(
        decoded, "read_image", lambda m, row, *more: decoded_rows.append(row) or read(m, row, *more)
    )
    images = decoded.DecodedImages(ramps, torch.tensor([0, 2]))
    for row in (0, 1, 2, 0, 1, 2):
        assert np.array_equal(images.read(row, 8), read(ramps, row, 8))
    assert decoded_rows == [0, 1, 2, 1]


def test_every_tensor_of_a_batch_is_pinned(ramps, monkeypatch):
    """The DataLoader calls the batch's own method."""
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda part: pinned.append(part) or part)
    crops = pin_memory(batches(ramps, "stream", epochs=1)[0])
    kinds = (crops.crops, crops.boxes, crops.flips)
    tensors = [crops.ids, *(part for kind in kinds for part in kind.values())]
    assert {id(part) for part in pinned} == {id(part) for part in tensors}


def test_stream_and_resident_have_the_same_boxes(ramps):
    for a, b in zip(batches(ramps, "stream"), batches(ramps, "resident"), strict=True):
        assert torch.equal(a.ids, b.ids)
        for branch in ("query", "key"):
            assert torch.equal(a.boxes[branch], b.boxes[branch])
            assert torch.equal(a.flips[branch], b.flips[branch])
            assert a.crops[branch].dtype == torch.uint8
            assert b.crops[branch].dtype == torch.float32


def test_one_branch_alone_is_the_same_branch(ramps):
    both, one = (
        batches(ramps, "resident", branches=branches) for branches in (("query", "key"), ("query",))
    )
    for a, b in zip(both, one, strict=True):
        assert set(b.crops) == {"query"}
        assert torch.equal(a.crops["query"], b.crops["query"])


# ----------------------------------------------------------------------------- single images


@pytest.mark.parametrize("size", [(60, 100), (100, 60), (80, 80), (33, 47)])
def test_the_evaluation_view_is_torchvisions_resize_and_centre_crop(make_manifest, size):
    manifest = make_manifest([(ramp(*size), 0, "val")])
    ids = manifest.ids("val")
    (images,) = evaluation_images(manifest, ids, 28, 32, batch=4, device=CPU, workers=0)
    image = reference.resize(Image.fromarray(ramp(*size)), 32, antialias=True)
    expected = reference.to_tensor(reference.center_crop(image, [28, 28]))
    assert images.shape == (1, 3, 28, 28)
    assert (images[0] - expected).abs().max() < 0.025  # torchvision rounds to whole pixels twice


def test_evaluation_views_keep_their_order(make_manifest):
    levels = [10, 200, 90, 40, 160]
    manifest = make_manifest([(np.full((9, 7, 3), v, np.uint8), 0, "val") for v in levels])
    ids = torch.tensor([3, 0, 4, 1, 2])
    images = torch.cat(list(evaluation_images(manifest, ids, 4, 5, batch=2, device=CPU, workers=0)))
    torch.testing.assert_close(images.mean((1, 2, 3)) * 255, torch.tensor(levels)[ids].float())
