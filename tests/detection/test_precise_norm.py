"""Before the test, batch norms take their statistics from batches of training images."""

from functools import partial

import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from salmask.detection.batches import Resizing, trainable, training_batches
from salmask.detection.training import detector_inputs, precise_batch_norm
from tests.helpers.drawn_scenes import detector, drawn

RESIZING = Resizing((48, 64), 200)
START, COUNT = 3, 4  # iterations, batches


def norms(model):
    return {name: m for name, m in model.named_modules() if isinstance(m, _BatchNorm)}


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.fixture
def batches(tmp_path):
    images = trainable(drawn(tmp_path / "drawn", 5))
    options = {"seed": 0, "batch": 2, "masks": False, "workers": 0, "device": torch.device("cpu")}
    made = partial(training_batches, images, RESIZING, **options)
    return lambda start, end: made(start=start, end=end)


def test_statistics_are_the_mean_over_the_next_batches(batches, job):
    model, hooked = detector(), detector().train()
    before = state(model)
    precise_batch_norm(model, batches, START, COUNT, job, "float32")
    inputs = {name: [] for name in norms(hooked)}
    for name, layer in norms(hooked).items():
        layer.register_forward_pre_hook(lambda _, args, name=name: inputs[name].append(args[0]))
    with torch.no_grad():
        for batch in batches(START, START + COUNT):
            hooked(*detector_inputs(batch))
    assert len(inputs) > 10
    for name, layer in norms(model).items():
        values = [x.transpose(0, 1).flatten(1) for x in inputs[name]]
        assert len(values) == COUNT and layer.momentum == 0.1
        mean = torch.stack([x.mean(dim=1) for x in values]).mean(dim=0)
        variance = torch.stack([x.var(dim=1) for x in values]).mean(dim=0)
        torch.testing.assert_close(layer.running_mean, mean, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(layer.running_var, variance, atol=1e-5, rtol=1e-4)
    after = state(model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert all(name.rpartition(".")[2].startswith(("running", "num")) for name in changed)


@pytest.mark.parametrize(
    ("options", "frozen"),
    [
        ({"norm": "frozen"}, ("trunk.", "heads.box_head.0.")),
        ({"freeze_encoder": True}, ("trunk.",)),
    ],
)
def test_frozen_norms_do_not_change(batches, job, options, frozen):
    model = detector(**options)
    before = state(model)
    precise_batch_norm(model, batches, START, COUNT, job, "float32")
    changed = {name for name, value in state(model).items() if not torch.equal(before[name], value)}
    assert changed and not any(name.startswith(frozen) for name in changed)


def test_no_batches_keep_the_running_averages(batches, job):
    model = detector()
    before = state(model)
    precise_batch_norm(model, batches, START, 0, job, "float32")
    assert all(torch.equal(before[name], value) for name, value in state(model).items())
