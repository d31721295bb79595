"""The variance of features over views: numbers worked out by hand, and batches of any size."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from salmask.encoders import on_disk as encoder_file
from salmask.encoders.heads import mlp
from salmask.encoders.on_disk import Encoder, InputSpec
from salmask.errors import UserError
from salmask.evaluate import variance
from salmask.evaluate.variance import RunViews
from salmask.job import Job
from salmask.masks.options import input_filter
from salmask.params.encoder import EncoderConfig
from salmask.params.values import Choice, bind
from salmask.params.view import ViewConfig
from salmask.saliency.store_rows import StorePlan, scaled
from tests.helpers.small_store import fill

VIEW = ViewConfig(size=8, grid=4, crop=(0.3, 1.0), blur_p=0.0)
STILL = ViewConfig(
    size=8, grid=4, crop=(1.0, 1.0), aspect=(0.75, 0.75), flip=0.0, jitter_p=0, gray_p=0, blur_p=0
)


def config(mask: str = "none", view: ViewConfig = VIEW, **options: object) -> RunViews:
    """The views of a run, without a store and an encoder."""
    return RunViews("a", view, Choice(mask, options), Path("nowhere"), Path("nowhere"))


class MeanColour(nn.Module):
    """Stands for a network: (B,3,H,W) -> (B,3)."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3))


def encoders(spec_filter: dict | None = None) -> dict[str, Encoder]:
    return {"trained": Encoder(MeanColour(), EncoderConfig(), InputSpec(8, 9, spec_filter)).eval()}


class Framework(nn.Module):
    """Replaces a framework: its projector doubles, negates and adds features."""

    def __init__(self) -> None:
        super().__init__()
        self.projector = mlp([3, 3], norm=False)
        weight = torch.tensor([[2.0, 0, 0], [0, -2, 0], [1, 1, 1]])
        self.projector.load_state_dict({"0.weight": weight, "0.bias": torch.ones(3)})


def run_views(
    job: Job, made: RunViews, store: Path = Path("nowhere"), through: str = ""
) -> RunViews:
    encoder_file.save_projector(Framework(), job.out)
    return replace(made, store=store, encoder=job.out, through=through)


@pytest.fixture
def rows(make_manifest):
    generator = np.random.default_rng(0)
    images = []
    for split, count in (("train", 2), ("val", 7), ("other", 3)):
        for _ in range(count):
            images.append((generator.integers(0, 255, (16, 12, 3), np.uint8), -1, split))
    return make_manifest(images)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_encoder_computes_in_the_chosen_precision(rows, job, precision):
    networks = encoders()
    dtypes = set()
    network = nn.Sequential(nn.Conv2d(3, 3, 1), MeanColour())
    network[0].register_forward_hook(
        lambda _, given, out: dtypes.add((out.dtype, torch.backends.cudnn.allow_tf32))
    )
    networks["trained"].network = network
    made = run_views(job, config())
    variance.run(networks, rows, job, made, views=2, precision=precision)
    assert dtypes == {(getattr(torch, precision), False)}


# ------------------------------------------------------------------------------------- by hand


def test_the_spread_by_hand():
    # image 1: dimension 1 takes 1, 2, 3 (variance 1), dimension 2 always 5 (0); image 2: 0, 0, 6
    # (mean 2, squares 4 + 4 + 16 = 24, over 2: 12) and 1, 1, 4 (mean 2: (1 + 1 + 4) / 2 = 3)
    features = torch.tensor([[[1.0, 5], [2, 5], [3, 5]], [[0, 1], [0, 1], [6, 4]]])
    assert variance.spread(features).tolist() == [[(1 + 0) / 2, 1], [(12 + 3) / 2, 15]]


def test_uniformity_by_hand():
    # squared distances: 2 between the axes, 4 and 2 to the opposite of the first
    unit = torch.tensor([[1.0, 0], [0, 1], [-1, 0]])
    expected = math.log((math.exp(-4) + math.exp(-8) + math.exp(-4)) / 3)
    assert variance.uniformity(unit) == pytest.approx(expected)


@given(st.integers(2, 40), st.integers(1, 6), st.integers(0, 99))
def test_uniformity_is_that_of_all_pairs_in_any_chunks(count, width, seed):
    generator = torch.Generator().manual_seed(seed)
    unit = nn.functional.normalize(
        torch.randn(count, width, generator=generator, dtype=torch.float64), dim=1
    )
    expected = torch.pdist(unit).square().mul(-2).exp().mean().log().item()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(variance, "_CHUNK", 7)
        assert variance.uniformity(unit) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@given(st.integers(0, 99))
def test_alignment_is_the_mean_squared_distance_of_two_views(seed):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(5, 4, 3, generator=generator, dtype=torch.float64)
    between = torch.cdist(features, features).square().sum((1, 2)) / (4 * 3)
    total = variance.spread(features)[:, 1].mean().item()
    assert 2 * total == pytest.approx(between.mean().item())


# ---------------------------------------------------------------------------------------- runs


def measured(rows, job, made=None, given_encoders=None, **options) -> dict[str, float]:
    beside = run_views(job, made or config())
    options = {"views": 6, "images": "resident"} | options
    return variance.run(given_encoders or encoders(), rows, job, beside, **options)


POOLED = ("pooled", "pooled_total", "unit", "unit_total", "alignment", "uniformity")
NAMES = (*POOLED, "projected", "projected_total", *(f"projected_{name}" for name in POOLED[2:]))


def test_every_split_is_measured_without_labels(rows, job):
    result = measured(rows, job)
    assert set(result) == {f"{p}variance_{name}" for p in ("", "other_") for name in NAMES}
    assert result["variance_pooled_total"] == pytest.approx(3 * result["variance_pooled"])
    assert result["variance_alignment"] == pytest.approx(2 * result["variance_unit_total"])
    assert result["variance_pooled"] > 0.001


def test_views_that_do_not_differ_have_no_spread(rows, job):
    result = measured(rows, job, config(view=STILL))
    still = [n for n in NAMES if "uniformity" not in n]
    assert all(result[f"variance_{n}"] == pytest.approx(0, abs=1e-9) for n in still)


def test_projected_features_are_those_behind_the_head(rows, job):
    result = measured(rows, job)
    direct = {"trained": Encoder(nn.Sequential(MeanColour(), Framework().projector),
                                 EncoderConfig(), InputSpec(8, 9, None)).eval()}  # fmt: skip
    expected = measured(rows, job, given_encoders=direct)
    for name in POOLED:
        projected = name.replace("pooled", "projected")
        projected = projected if "projected" in projected else f"projected_{name}"
        assert result[f"variance_{projected}"] == pytest.approx(expected[f"variance_{name}"]), name
    assert result["variance_projected"] != pytest.approx(result["variance_pooled"], rel=0.1)


def test_without_a_head_projected_features_are_the_pooled_ones(rows, job):
    encoder_file.save_projector(nn.Identity(), job.out)
    beside = replace(config(), encoder=job.out)
    result = variance.run(encoders(), rows, job, beside, views=3, images="resident")
    assert result["variance_projected"] == result["variance_pooled"]


def test_a_head_that_is_not_there_is_named(rows, job):
    beside = replace(config(), encoder=job.work)
    with pytest.raises(UserError, match=r"holds no projector\.safetensors"):
        variance.run(encoders(), rows, job, beside)


@pytest.mark.parametrize("masked", [True, False])
def test_through_another_encoder_views_are_filtered_as_their_run_does(rows, job, tmp_path, masked):
    made = config("high_pass", ratio=(0.0, 0.0), focal=0.0, hard_negative=None)
    store = saliency(rows, tmp_path)
    options = {"views": 4, "masked": masked}
    own = encoders(input_filter(made.mask, 8))  # with the same weights as the plain run's
    result = variance.run(own, rows, job, run_views(job, made, store), **options)
    plain = run_views(job, made, store, through="mocov2")
    through = variance.run(encoders(), rows, job, plain, **options)
    name = "variance" if masked else "variance_unmasked"
    assert through == {k.replace(name, f"{name}_through_mocov2"): v for k, v in result.items()}


@pytest.mark.parametrize("images", ["stream", "resident"])
@pytest.mark.parametrize("mask", ["none", "mean"])
def test_numbers_do_not_depend_on_the_batch(rows, job, tmp_path, images, mask):
    beside = run_views(job, config(mask), saliency(rows, tmp_path))
    result = [
        variance.run(encoders(), rows, job, beside, views=5, batch=size, images=images)
        for size in (1, 4, 100)
    ]
    for other in result[1:]:
        assert other == pytest.approx(result[0], rel=1e-5)


def saliency(rows, tmp_path) -> Path:
    """A store of random maps for the rows."""
    path = tmp_path / "saliency.zarr"
    plan = StorePlan(len(rows), 100, {16: (4, 4)}, {"manifest": rows.digest})
    maps = torch.rand(len(rows), 4, 4, generator=torch.Generator().manual_seed(0))
    recorded = scaled({16: maps}, torch.ones(len(rows), 32, dtype=torch.uint8))
    fill(path, plan, lambda _: iter([recorded]))
    return path


class Contrast(nn.Module):
    """Replaces a network; the features are lower for flat patches: (B,3,H,W) -> (B,3)."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.std((2, 3))


def test_a_runs_mask_is_part_of_its_views_and_drawn_for_each(rows, job, tmp_path):
    made = config("mean", STILL, ratio=(0.4, 0.4), hard_negative=None)
    beside = run_views(job, made, saliency(rows, tmp_path))
    given = {"trained": Encoder(Contrast(), EncoderConfig(), InputSpec(8, 9, None))}
    options = {"views": 6, "images": "resident"}
    result = variance.run(given, rows, job, beside, **options)
    without = variance.run(given, rows, job, beside, masked=False, **options)
    assert set(without) == {n.replace("variance", "variance_unmasked") for n in result}
    # the views differ in their masks only
    assert without["variance_unmasked_pooled"] == pytest.approx(0, abs=1e-9)
    assert result["variance_pooled"] > 1e-4


def test_a_filtered_view_is_filtered_once(rows, job, tmp_path):
    # no patch is masked, so the input of the encoder is the filtered view in both cases
    made = config("high_pass", ratio=(0.0, 0.0), focal=0.0, hard_negative=None)
    given = encoders(input_filter(made.mask, 8))
    beside = run_views(job, made, saliency(rows, tmp_path))
    result = variance.run(given, rows, job, beside, views=4)
    same = variance.run(given, rows, job, beside, views=4, masked=False)
    assert result["variance_pooled"] == pytest.approx(same["variance_unmasked_pooled"], rel=1e-4)


def test_a_mask_that_learns_and_a_single_view_are_refused(rows, job):
    with pytest.raises(UserError, match="learns"):
        measured(rows, job, config("adios"))
    with pytest.raises(UserError, match="views: must be a whole number from 2 to 1 billion, got 1"):
        bind(variance.run, {"views": 1}, "evaluate.variance")


def test_without_a_validation_split_there_is_nothing_to_measure(make_manifest, job):
    rows = make_manifest([(np.zeros((8, 8, 3), np.uint8), -1, "train")])
    assert measured(rows, job) == {}
