"""Every evaluation applies the input filter that encoder.json describes."""

import dataclasses
import importlib
import inspect
import pkgutil

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from salmask import evaluate
from salmask.data.normalisation import normalise
from salmask.encoders import on_disk as encoder_file
from salmask.encoders.on_disk import InputSpec
from tests.helpers.tiny_encoders import FILTER, SMALL, features, pictures, saved

MODULES = [importlib.import_module(f"salmask.evaluate.{m.name}")
           for m in pkgutil.iter_modules(evaluate.__path__)]  # fmt: skip
# the views of `variance` are filtered by the mask of their run: see test_variance.py
PROTOCOLS = [module for module in MODULES
             if callable(getattr(module, "run", None))
             and not module.__name__.endswith((".variance", ".detect"))]  # fmt: skip
PLAIN = InputSpec(16, 18, None)
FILTERED = dataclasses.replace(PLAIN, filter=FILTER)
# options that shorten a protocol; each protocol gets those that it has
SHORT = {"k": (1,), "epochs": 1, "batch": 8, "milestones": (), "images": "resident",
         "iterations": 2, "lr": 1e-3}  # fmt: skip


def test_leaving_out_the_filter_changes_the_features(tmp_path):
    saved(tmp_path / "with", SMALL, FILTERED)
    saved(tmp_path / "without", SMALL, PLAIN)
    images = pictures(4, 16)
    with_it, without = (features(tmp_path / name, images) for name in ("with", "without"))
    assert (with_it - without).abs().max() > 0.1 * without.abs().max()
    # the filter removes a constant
    darker = features(tmp_path / "with", images - 0.1)
    torch.testing.assert_close(darker, with_it, atol=1e-4, rtol=1e-4)


@pytest.fixture
def rows(make_manifest):
    """Images of one colour each: a high-pass filter turns every crop of them into zeros."""
    images = []
    for split in ("train", "val"):
        for i in range(16):
            pixels = np.full((20, 24, 3), 60, np.uint8)
            pixels[..., 2 * (i % 2)] = 150 + 3 * i
            images.append((pixels, i % 2, split))
    return make_manifest(images)


def inputs_of(protocol, folder, rows, job) -> list[torch.Tensor]:
    """The inputs (b,3,S,S) of all networks while a protocol scores the encoder."""
    recorded: list[torch.Tensor] = []

    def look(layer: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        if isinstance(layer, nn.Conv2d) and layer.in_channels == 3:
            recorded.append(given[0].detach().clone())

    known = inspect.signature(protocol.run).parameters
    options = {name: value for name, value in SHORT.items() if name in known}
    encoders = {"trained": encoder_file.load(folder, job.device)}
    encoders["random-0"] = encoder_file.random_like(folder, 0, job.device)
    hook = register_module_forward_pre_hook(look)
    try:
        protocol.run(encoders, rows, job, **options)
    finally:
        hook.remove()
    assert len(recorded) > 1, "the network was never used"
    return recorded


def largest_input(protocol, folder, rows, job) -> float:
    """The largest absolute value of these inputs."""
    return max(float(images.abs().max()) for images in inputs_of(protocol, folder, rows, job))


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda module: module.__name__.split(".")[-1])
def test_every_protocol_applies_the_filter(tmp_path, rows, job, protocol):
    saved(tmp_path / "with", SMALL, FILTERED)
    saved(tmp_path / "without", SMALL, PLAIN)
    apart = dataclasses.replace(job, work=tmp_path / "other work")
    assert largest_input(protocol, tmp_path / "with", rows, job) < 1e-3
    assert largest_input(protocol, tmp_path / "without", rows, apart) > 0.5


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda module: module.__name__.split(".")[-1])
def test_images_of_the_views_size_are_scored_pixel_by_pixel(tmp_path, make_manifest, job, protocol):
    """With `view.shorter` equal to `view.size`, square images of that size are not resampled."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (32, 16, 16, 3), dtype=np.uint8)
    rows = make_manifest([(p, i % 2, "val" if i >= 16 else "train") for i, p in enumerate(pixels)])
    whole = normalise(torch.from_numpy(pixels[16:]).permute(0, 3, 1, 2) / 255)
    recorded = {}
    for name, shorter in (("whole", 16), ("default", None)):
        saved(tmp_path / name, SMALL, InputSpec.for_views(16, None, shorter))
        apart = dataclasses.replace(job, work=tmp_path / f"work {name}")
        recorded[name] = torch.cat(inputs_of(protocol, tmp_path / name, rows, apart))
    for image in whole:  # of the split that is scored
        assert (recorded["whole"] == image).flatten(1).all(dim=1).any()
        assert not (recorded["default"] == image).flatten(1).all(dim=1).any()


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda module: module.__name__.split(".")[-1])
def test_precision_is_that_of_the_encoder_and_excludes_tensorfloat(tmp_path, rows, job, protocol):
    saved(tmp_path, SMALL, PLAIN)
    computed: dict[str, set[tuple[torch.dtype, bool]]] = {}
    for precision in ("float32", "bfloat16"):
        states = computed.setdefault(precision, set())

        def look(layer: nn.Module, given: object, out: torch.Tensor, states=states) -> None:
            if isinstance(layer, nn.Conv2d) and not out.requires_grad:
                states.add((out.dtype, torch.backends.cudnn.allow_tf32))

        known = inspect.signature(protocol.run).parameters
        options = {name: value for name, value in SHORT.items() if name in known}
        encoders = {"trained": encoder_file.load(tmp_path, job.device)}
        apart = dataclasses.replace(job, work=job.work / precision)
        hook = register_module_forward_hook(look)
        try:
            protocol.run(encoders, rows, apart, **options, precision=precision)
        finally:
            hook.remove()
    assert computed["float32"] == {(torch.float32, False)}
    if protocol.__name__.endswith(".finetune"):  # its own precision is that of the training
        assert computed["bfloat16"] == {(torch.float32, False)}
    else:
        assert computed["bfloat16"] == {(torch.bfloat16, False)}


def test_all_protocols_are_tested():
    names = {module.__name__.split(".")[-1] for module in PROTOCOLS}
    assert {"knn", "linear", "linear_fast", "finetune", "transfer"} <= names
