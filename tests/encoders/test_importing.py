import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchvision
import yaml
from click.testing import CliRunner
from safetensors.torch import save_file
from torch import Tensor, nn

from salmask.commands.cli import main
from salmask.encoders import importing
from salmask.encoders.importing import Import
from salmask.errors import UserError
from salmask.params.encoder import EncoderConfig
from salmask.params.values import check
from tests.helpers.project import TINY
from tests.helpers.tiny_encoders import FILTER, features, pictures, random_network

SLIM = EncoderConfig("resnet18", width=8)
WHERE = "params.yaml: imports.theirs"


def trunk(config: EncoderConfig = SLIM) -> dict[str, Tensor]:
    return dict(random_network(config).state_dict())


def under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in tensors.items()}


def noise(*keys: str) -> dict[str, Tensor]:
    """Parts of a checkpoint that are not the encoder."""
    return {key: torch.randn(3, 2) for key in keys}


def children(config: EncoderConfig = SLIM) -> dict[str, Tensor]:
    """The encoder as the sequence of torchvision's layers, up to the pooling."""
    return dict(nn.Sequential(*list(random_network(config).children())[:-1]).state_dict())


def moco(head: tuple[str, ...] = ("fc.0.weight", "fc.0.bias", "fc.2.weight")) -> dict[str, Tensor]:
    other = under("module.encoder_k.", {key: value + 1 for key, value in trunk().items()})
    query = under("module.encoder_q.", trunk() | noise(*head))
    return query | other | noise("module.queue", "module.queue_ptr")


LAYOUTS = {
    "moco v2": ("moco", {"encoder_k", "fc", "queue", "queue_ptr"}, moco()),
    "moco v1": ("moco", {"encoder_k", "fc", "queue", "queue_ptr"}, moco(("fc.weight", "fc.bias"))),
    "moco v3": (
        "moco_v3",
        {"fc", "momentum_encoder", "predictor"},
        under("module.base_encoder.", trunk() | noise("fc.0.weight"))
        | under("module.momentum_encoder.", {key: value + 1 for key, value in trunk().items()})
        | noise("module.predictor.0.weight"),
    ),
    "simsiam": (
        "simsiam",
        {"fc", "predictor"},
        under("module.encoder.", trunk() | noise("fc.0.weight", "fc.6.bias"))
        | noise("module.predictor.0.weight"),
    ),
    "solo": (
        "solo",
        {"classifier", "momentum_backbone", "projector", "queue"},
        under("backbone.", trunk())
        | under("momentum_backbone.", {key: value + 1 for key, value in trunk().items()})
        | noise("classifier.weight", "projector.0.weight", "queue"),
    ),
    "solo, early": (
        "solo_old",
        {"classifier", "projector"},
        under("encoder.", trunk()) | noise("classifier.weight", "projector.0.weight"),
    ),
    "lightly": (
        "lightly",
        {"projection_head"},
        under("backbone.", children()) | noise("projection_head.layers.0.weight"),
    ),
    "torchvision": ("torchvision", {"fc"}, trunk() | noise("fc.weight", "fc.bias")),
    "no head": ("torchvision", set(), trunk()),
    "wrapped": ("torchvision", {"fc"}, under("module.", trunk() | noise("fc.weight"))),
}


def written(folder: Path, tensors: dict[str, Tensor], name: str = "theirs.pth.tar") -> Path:
    """A checkpoint with an epoch, an optimizer and so on around the weights."""
    path = folder / name
    around = {"epoch": 200, "arch": "resnet18", "optimizer": {"state": {0: torch.ones(2)}}}
    torch.save(around | {"state_dict": tensors}, path)
    return path


def entry(path: Path, **options: object) -> Import:
    return check({"path": str(path), "arch": "resnet18", "width": 8} | options, Import, WHERE)


@pytest.mark.parametrize("layout", ["auto", "by name"])
@pytest.mark.parametrize("case", LAYOUTS)
def test_every_layout_is_recognised_and_read(tmp_path, case, layout):
    name, dropped, tensors = LAYOUTS[case]
    config = entry(written(tmp_path, tensors), layout="auto" if layout == "auto" else name)
    imported = importing.read(config, WHERE)
    assert imported.layout == name and set(imported.dropped) == dropped
    importing.save(config, imported, tmp_path / "ours")
    images, network = pictures(2, 64), random_network(SLIM)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.inference_mode():
        theirs = network((images - mean[:, None, None]) / std[:, None, None])
    torch.testing.assert_close(features(tmp_path / "ours", images), theirs, atol=1e-5, rtol=1e-5)


def test_a_file_of_torchvision_needs_no_options(tmp_path):
    network = torchvision.models.resnet18().eval()
    save_file(network.state_dict(), tmp_path / "resnet18.safetensors")
    config = entry(tmp_path / "resnet18.safetensors", width=64)
    importing.save(config, importing.read(config, WHERE), tmp_path / "ours")
    network.fc = nn.Identity()
    images = pictures(2, 64)
    prepared = torchvision.transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    with torch.inference_mode():
        theirs = network(prepared(images))
    torch.testing.assert_close(features(tmp_path / "ours", images), theirs, atol=1e-4, rtol=1e-4)


def test_the_input_options_reach_the_encoder(tmp_path):
    path = written(tmp_path, trunk())
    plain, other = entry(path), entry(path, mean=[0.1, 0.2, 0.3], std=[0.5, 0.6, 0.7], size=96)
    for name, config in (
        ("plain", plain),
        ("other", other),
        ("f", replace(plain, filter=FILTERED)),
    ):
        importing.save(config, importing.read(config, WHERE), tmp_path / name)
    description = json.loads((tmp_path / "other/encoder.json").read_text())
    assert description["input"]["mean"] == [0.1, 0.2, 0.3] and description["input"]["std"] == [
        0.5,
        0.6,
        0.7,
    ]
    assert (
        description["input"]["size"] == 96 and description["input"]["shorter"] == 110
    )  # 96 * 256 / 224
    assert description["source"] == {
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "layout": "torchvision",
        "dropped": [],
    }
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 0.6, 0.7])
    images = pictures()
    with torch.inference_mode():
        theirs = random_network(SLIM)((images - mean[:, None, None]) / std[:, None, None])
    torch.testing.assert_close(features(tmp_path / "other", images), theirs, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(features(tmp_path / "plain", images), theirs, atol=1e-3)
    filtered = features(tmp_path / "f", images)
    assert not torch.allclose(features(tmp_path / "plain", images), filtered, atol=1e-3)


FILTERED = check(FILTER, importing.InputFilter, "filter")

# ------------------------------------------------------------------------------ errors


def without(tensors: dict[str, Tensor], *keys: str) -> dict[str, Tensor]:
    assert set(keys) <= set(tensors)
    return {key: value for key, value in tensors.items() if key not in keys}


@pytest.mark.parametrize(
    ("tensors", "options", "message"),
    [
        (
            without(moco(), "module.encoder_q.layer3.0.conv2.weight"),
            {},
            "missing: layer3.0.conv2.weight",
        ),
        (
            without(trunk(), "bn1.running_var", "layer4.1.bn2.bias"),
            {},
            "missing: bn1.running_var, layer4.1.bn2.bias",
        ),
        (trunk() | noise("layer5.0.conv1.weight"), {}, "unknown: layer5.0.conv1.weight"),
        (under("module.encoder_q.", trunk() | noise("adapter.weight")), {}, "unknown: adapter"),
        (trunk() | {"conv1.weight": torch.ones(4, 3, 3, 3)}, {}, "of another shape: conv1.weight"),
        (trunk(), {"width": 16}, "of another shape: conv1.weight, bn1.weight"),
        (trunk(), {"arch": "resnet34"}, "missing: layer1.2.conv1.weight"),
        (
            moco() | noise("module.teacher.0.weight"),
            {},
            "parts that layout moco does not include: teacher",
        ),
        (
            trunk(),
            {"layout": "moco"},
            "does not have layout moco: no layer names after `encoder_q.`",
        ),
        (moco(), {"layout": "torchvision"}, "unknown: encoder_q."),
        (under("backbone.", trunk()), {"layout": "lightly"}, "no layer numbers after"),
        (under("backbone.", children()), {"layout": "solo"}, "no layer names after `back"),
        (under("backbone.", children() | noise("2.weight")), {}, "unknown: 2.weight"),
        (under("backbone.", trunk()), {"stem": "small"}, "solo-learn's 3x3 stem pads by 2"),
        (
            under("backbone.", children()),
            {"arch": "shufflenet_v2_x0_5", "width": 64},
            "numbers the layers of ResNets",
        ),
        (trunk(), {"arch": "resnet19"}, "no network `resnet19`; did you mean"),
        (trunk(), {"sha256": "0" * 64}, "is not the expected file: its sha256 is"),
    ],
)
def test_misfits_are_reported_with_their_keys(tmp_path, tensors, options, message):
    config = entry(written(tmp_path, tensors), **options)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        importing.read(config, WHERE)
    assert str(caught.value).startswith(WHERE)


def test_no_weight_may_be_missing(tmp_path):
    """Except the batch counters, which older programs did not save and nothing here uses."""
    weights = trunk(EncoderConfig("resnet10", width=8))
    complete = under("module.encoder_q.", weights)
    for key in weights:
        config = entry(
            written(tmp_path, without(complete, f"module.encoder_q.{key}")), arch="resnet10"
        )
        if key.endswith("num_batches_tracked"):
            assert set(importing.read(config, WHERE).weights) == set(weights)
        else:
            with pytest.raises(UserError, match=rf"missing: {re.escape(key)}$"):
                importing.read(config, WHERE)


def test_parts_under_drop_are_ignored(tmp_path):
    odd = moco() | noise("module.teacher.0.weight", "module.encoder_q.adapter.weight")
    config = entry(written(tmp_path, odd), drop=["teacher", "adapter"])
    imported = importing.read(config, WHERE)
    assert {"adapter", "teacher"} < set(imported.dropped)
    assert all(torch.equal(imported.weights[key], value) for key, value in trunk().items())


def test_only_tensors_are_unpickled(tmp_path):
    class Evil:
        def __reduce__(self):
            return Path.write_text, (tmp_path / "ran", "code")

    torch.save({"state_dict": trunk(), "hyper_parameters": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(UserError, match="cannot be read as weights"):
        importing.read(entry(tmp_path / "evil.ckpt"), WHERE)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"layout": "vissl"},
            r"no layout `vissl`; choose from auto, lightly, moco, moco_v3, simsiam",
        ),
        ({"std": [0.2, 0, 0.2]}, "std"),
        ({"shorter": 100}, "shorter: 100 is less than size 224"),
        ({"filter": {"name": "high_pass", "kernel": 4, "sigma": 1}}, "filter: kernel must be odd"),
        ({"filter": {"name": "low_pass", "kernel": 3, "sigma": 1}}, "filter.name"),
        ({"sha256": "abc"}, "sha256"),
        ({"ached": "resnet50"}, "ached: no such key"),
    ],
)
def test_invalid_options(tmp_path, options, message):
    with pytest.raises(UserError, match=message) as caught:
        entry(tmp_path / "x", **options)
    assert str(caught.value).startswith(WHERE)


# ------------------------------------------------------------------------------- salmask check


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    written(tmp_path, moco())
    theirs = {"path": "theirs.pth.tar", "arch": "resnet18", "width": 8}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(TINY | {"imports": {"theirs": theirs}}))
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    return tmp_path


def edited(project: Path, **imports: object) -> str:
    path = project / "params.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"imports": imports}))
    done = CliRunner().invoke(main, ["check"])
    assert done.exit_code == 2, done.output
    return done.output


def test_check_reads_the_checkpoints(project):
    done = CliRunner().invoke(main, ["check"])
    assert done.output == "params.yaml is valid\n"
    theirs = {"path": "theirs.pth.tar", "arch": "resnet18"}
    assert "imports.x: no file at gone.pth" in edited(project, x=theirs | {"path": "gone.pth"})
    assert "of another shape: conv1.weight" in edited(project, x=theirs)
    assert "no network `resnet5`" in edited(project, x=theirs | {"arch": "resnet5"})
    assert "imports.x.arch: is missing: a text" in edited(project, x={"path": "theirs.pth.tar"})


def test_a_run_and_an_import_of_one_name_are_refused(project):
    theirs = {"path": "theirs.pth.tar", "arch": "resnet18", "width": 8}
    assert "imports.plain: there is a run of this name" in edited(project, plain=theirs)
    assert "imports.A_b: a name is made of" in edited(project, A_b=theirs)
