"""Before the tests, batch norms take their statistics from whole batches of training images."""

from functools import partial

import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from salmask.detection.batches import Resizing, trainable, training_batches
from salmask.detection.training import on_device, precise_batch_norm
from tests.helpers.drawn_scenes import detector, drawn

LOOKS = Resizing((48, 64), 200)
AFTER, COUNT = 3, 4  # iterations, batches


def norms(model):
    return {name: m for name, m in model.named_modules() if isinstance(m, _BatchNorm)}


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.fixture
def batches(tmp_path):
    pictures = trainable(drawn(tmp_path / "drawn", 5))
    of = partial(training_batches, pictures, LOOKS, seed=0, batch=2, masks=False, workers=0)
    return lambda start, end: of(start=start, end=end)


def test_statistics_are_the_mean_over_the_batches_that_come_next(batches, job):
    model, watched = detector(), detector().train()
    before = state(model)
    precise_batch_norm(model, batches, AFTER, COUNT, job, "float32")
    inputs = {name: [] for name in norms(watched)}
    for name, layer in norms(watched).items():
        layer.register_forward_pre_hook(lambda _, given, name=name: inputs[name].append(given[0]))
    with torch.no_grad():
        for batch in batches(AFTER, AFTER + COUNT):
            watched(*on_device(batch, job.device))
    assert len(inputs) > 10
    for name, layer in norms(model).items():
        seen = [x.transpose(0, 1).flatten(1) for x in inputs[name]]
        assert len(seen) == COUNT and layer.momentum == 0.1
        mean = torch.stack([x.mean(dim=1) for x in seen]).mean(dim=0)
        variance = torch.stack([x.var(dim=1) for x in seen]).mean(dim=0)
        torch.testing.assert_close(layer.running_mean, mean, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(layer.running_var, variance, atol=1e-5, rtol=1e-4)
    after = state(model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert all(name.rpartition(".")[2].startswith(("running", "num")) for name in changed)


@pytest.mark.parametrize(
    ("options", "stay"),
    [
        ({"norm": "frozen"}, ("trunk.", "heads.box_head.0.")),
        ({"freeze_encoder": True}, ("trunk.",)),
    ],
)
def test_what_is_frozen_stays(batches, job, options, stay):
    model = detector(**options)
    before = state(model)
    precise_batch_norm(model, batches, AFTER, COUNT, job, "float32")
    changed = {name for name, value in state(model).items() if not torch.equal(before[name], value)}
    assert changed and not any(name.startswith(stay) for name in changed)


def test_no_batches_keep_the_running_averages(batches, job):
    model = detector()
    before = state(model)
    precise_batch_norm(model, batches, AFTER, 0, job, "float32")
    assert all(torch.equal(before[name], value) for name, value in state(model).items())
