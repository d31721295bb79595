"""Checkpoints in wrappers and containers of other programs, and weights that are not finite."""

import itertools

import pytest
import torch

from salmask.encoders import importing, on_disk
from salmask.encoders.backbones import build_encoder
from salmask.encoders.on_disk import InputSpec
from salmask.errors import NonFiniteLossError, UserError
from salmask.params.encoder import EncoderConfig

CONFIG = EncoderConfig("resnet10", 8)
PREFIXES = ("module.", "_orig_mod.", "model.")


def _read(path):
    entry = importing.Import(path=path, arch=CONFIG.arch, width=CONFIG.width)
    return importing.read(entry, "imports.x").weights


@pytest.mark.parametrize("container", ["", "state_dict", "model", "teacher"])
def test_wrappers_in_any_order_and_containers(tmp_path, container):
    weights = build_encoder(CONFIG, seed=0).state_dict()
    moco = {f"encoder_{part}.{name}": value for part in "qk" for name, value in weights.items()}
    for count in range(4):
        for order in itertools.permutations(PREFIXES, count):
            tensors = {"".join(order) + name: value for name, value in moco.items()}
            content = {container: tensors, "epoch": 3} if container else tensors
            torch.save(content, tmp_path / "x.pth")
            imported = _read(tmp_path / "x.pth")
            assert all(torch.equal(imported[name], weights[name]) for name in weights)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_neither_read_nor_saved(tmp_path, value):
    weights = build_encoder(CONFIG, seed=0).state_dict()
    name = next(key for key in weights if key.endswith("running_var"))
    weights[name][0] = value
    torch.save(weights, tmp_path / "x.pth")
    with pytest.raises(UserError, match=f"NaN or infinite, in {name}"):
        _read(tmp_path / "x.pth")
    with pytest.raises(NonFiniteLossError, match="NaN or infinite"):
        on_disk.save(weights, CONFIG, InputSpec.for_views(32, None, None), tmp_path / "e")
    assert not (tmp_path / "e").exists()


def test_objects_that_are_no_tensors_get_safe_advice(tmp_path):
    torch.save({"state_dict": {}, "options": importing.Path}, tmp_path / "x.pth")
    with pytest.raises(UserError, match="imports-and-export") as error:
        _read(tmp_path / "x.pth")
    assert "weights_only" not in str(error.value)
