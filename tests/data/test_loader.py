import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data._utils.pin_memory import pin_memory
from torchvision.transforms import functional as reference

from salmask.data.loader import Resident, Schedule, centred, geometry, mirror, pairs
from salmask.params.view import ViewConfig

CPU = torch.device("cpu")
CONFIG = ViewConfig(size=16, grid=4, crop=(0.3, 0.9))


def ramp(height: int, width: int) -> np.ndarray:
    """Red runs from left to right, green from top to bottom, as shares of 255; blue is 100."""
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
        pairs(
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
    tickets = list(schedule.tickets(0, 0))
    assert schedule.steps_per_epoch == count // batch
    assert [t[:2] for t in tickets] == [
        (e, s) for e in range(epochs) for s in range(count // batch)
    ]
    for epoch in range(epochs):
        ids = torch.cat([t[2] for t in tickets if t[0] == epoch] or [torch.tensor([])]).tolist()
        assert len(ids) == len(set(ids)) == count // batch * batch
        assert set(ids) <= {3 * i for i in range(count)}


@given(st.integers(4, 30), st.integers(1, 4), st.data())
def test_a_schedule_begins_again_anywhere(count, batch, data):
    schedule = Schedule(1, torch.arange(count), batch, 3)
    tickets = list(schedule.tickets(0, 0))
    at = data.draw(st.integers(0, len(tickets) - 1))
    again = list(schedule.tickets(*divmod(at, schedule.steps_per_epoch)))
    assert len(again) == len(tickets) - at
    assert all(
        a[:2] == b[:2] and torch.equal(a[2], b[2]) for a, b in zip(again, tickets[at:], strict=True)
    )


# --------------------------------------------------------------------------------------- pairs


@pytest.mark.parametrize(("images", "tolerance"), [("stream", 3.0), ("resident", 3.0)])
def test_a_crop_shows_what_its_box_says(ramps, images, tolerance):
    """Red and green of a ramp tell where every pixel of a view comes from."""
    centre = (torch.arange(16) + 0.5) / 16
    flipped = set()
    for found in batches(ramps, images):
        for branch in ("query", "key"):
            for crop, box, flip in zip(
                found.crops[branch], found.boxes[branch], found.flips[branch], strict=True
            ):
                y, x, h, w = box.tolist()
                red = 255 * (x + w * (centre.flip(0) if flip else centre))
                green = 255 * (y + h * centre)
                inner = slice(1, -1)  # at an image's rim there is nothing to average with
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
def test_training_goes_on_where_it_was(ramps, images, start):
    whole = batches(ramps, images)
    rest = batches(ramps, images, start=start)
    at = start[0] * 2 + start[1]
    assert len(rest) == len(whole) - at == 4 - at
    assert all(same(a, b) for a, b in zip(rest, whole[at:], strict=True))


def test_worker_processes_change_nothing(ramps):
    alone, helped = (batches(ramps, "stream", workers=workers, epochs=1) for workers in (0, 2))
    assert all(same(a, b) for a, b in zip(alone, helped, strict=True))


def test_a_gpu_reads_every_part_of_a_batch_from_pinned_memory(ramps, monkeypatch):
    """As the loader pins: by the batch's own method, or not at all."""
    asked = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda part: asked.append(part) or part)
    crops = pin_memory(batches(ramps, "stream", epochs=1)[0])
    kinds = (crops.crops, crops.boxes, crops.flips)
    held = [crops.ids, *(part for kind in kinds for part in kind.values())]
    assert {id(part) for part in asked} == {id(part) for part in held}


def test_stream_and_resident_see_the_same_boxes(ramps):
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


def test_views_and_epochs_have_boxes_of_their_own(ramps):
    ids = ramps.ids("train")
    boxes = [geometry(ramps, CONFIG, 0, epoch, ids)[0] for epoch in (0, 1)]
    assert not torch.isclose(boxes[0]["query"], boxes[0]["key"]).all(1).any()
    assert not torch.isclose(boxes[0]["query"], boxes[1]["query"]).all(1).any()


def test_mirror_flips_the_chosen_left_to_right():
    images = torch.arange(8.0).view(2, 1, 2, 2)
    wanted = torch.tensor([[[[1.0, 0], [3, 2]]], [[[4.0, 5], [6, 7]]]])
    assert torch.equal(mirror(images, torch.tensor([True, False])), wanted)


# ------------------------------------------------------------------------------------- resident


def _resident(make_manifest, images):
    manifest = make_manifest([(pixels, 0, "train") for pixels in images])
    return Resident(manifest, manifest.ids("train"), CPU)


def test_the_whole_of_a_resident_image_at_its_size_is_the_image(make_manifest):
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 256, (12, 12, 3), dtype=np.uint8) for _ in range(3)]
    held = _resident(make_manifest, pixels)
    box = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(2, 4)
    found = held.crop(torch.tensor([2, 0]), box, 12)
    wanted = torch.from_numpy(np.stack([pixels[2], pixels[0]])).permute(0, 3, 1, 2).float()
    torch.testing.assert_close(found, wanted, atol=1e-3, rtol=0)


def test_shrinking_a_resident_image_averages_every_pixel(make_manifest):
    pixels = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    held = _resident(make_manifest, [pixels])
    found = held.crop(torch.tensor([0]), torch.tensor([[0.0, 0.0, 1.0, 1.0]]), 4)
    blocks = pixels.reshape(4, 6, 4, 6, 3).mean(axis=(1, 3))  # 6 x 6 pixels become one
    wanted = torch.from_numpy(blocks).permute(2, 0, 1).float()
    torch.testing.assert_close(found[0], wanted, atol=1e-2, rtol=0)


def test_a_small_image_beside_a_large_one_keeps_its_rim(make_manifest):
    white = [np.full((n, n, 3), 255, np.uint8) for n in (10, 20)]
    found = _resident(make_manifest, white).crop(
        torch.tensor([0]), torch.tensor([[0.0, 0.0, 1.0, 1.0]]), 20
    )
    torch.testing.assert_close(found, torch.full((1, 3, 20, 20), 255.0))


# ----------------------------------------------------------------------------- single images


@pytest.mark.parametrize("size", [(60, 100), (100, 60), (80, 80), (33, 47)])
def test_the_evaluation_view_is_torchvisions_resize_and_centre_crop(make_manifest, size):
    manifest = make_manifest([(ramp(*size), 0, "val")])
    found = next(
        iter(centred(manifest, manifest.ids("val"), 28, 32, batch=4, device=CPU, workers=0))
    )
    image = reference.resize(Image.fromarray(ramp(*size)), 32, antialias=True)
    wanted = reference.to_tensor(reference.center_crop(image, [28, 28]))
    assert found.shape == (1, 3, 28, 28)
    assert (found[0] - wanted).abs().max() < 0.025  # they round to whole pixels twice


def test_evaluation_views_keep_their_order(make_manifest):
    levels = [10, 200, 90, 40, 160]
    manifest = make_manifest([(np.full((9, 7, 3), v, np.uint8), 0, "val") for v in levels])
    ids = torch.tensor([3, 0, 4, 1, 2])
    found = torch.cat(list(centred(manifest, ids, 4, 5, batch=2, device=CPU, workers=0)))
    torch.testing.assert_close(found.mean((1, 2, 3)) * 255, torch.tensor(levels)[ids].float())
