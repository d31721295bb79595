"""Exports: features in each program, names of weights, and refused networks."""

import dataclasses
import json
import pickle
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from salmask.commands.cli import main
from salmask.encoders import export as exports
from salmask.encoders import importing
from salmask.encoders.backbones import build_encoder
from salmask.encoders.export import FORMATS, detectron2_key, export
from salmask.encoders.on_disk import InputSpec
from salmask.errors import UserError
from salmask.files import file_digest
from salmask.params.encoder import EncoderConfig
from tests.helpers.tiny_encoders import FILTER, SMALL, features, pictures, random_network, saved

RESNET18 = EncoderConfig("resnet18")
SLIM50 = EncoderConfig("resnet50", width=8)


@pytest.mark.parametrize(
    ("arch", "suffix"),
    [
        ("resnet18", ".pth"),
        ("shufflenet_v2_x0_5", ".safetensors"),
        ("densenet121", ".pth"),
        ("convnext_tiny", ".safetensors"),
    ],
)
def test_torchvisions_network_has_the_same_features(tmp_path, arch, suffix):
    """convnext's head is one of three layers named classifier, the others stay."""
    saved(tmp_path / "mine", EncoderConfig(arch), InputSpec(64, 73, None))
    out = tmp_path / f"theirs{suffix}"
    made = export(tmp_path / "mine", "torchvision", out)
    theirs = torchvision.models.get_model(arch)
    state = load_file(out) if suffix == ".safetensors" else torch.load(out, weights_only=True)
    left = theirs.load_state_dict(state, strict=False)
    # weight and bias of the classifier
    assert not left.unexpected_keys and len(left.missing_keys) == 2
    theirs.set_submodule(left.missing_keys[0].rpartition(".")[0], torch.nn.Identity())
    images = pictures(2, 64)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.inference_mode():
        result = theirs.eval()((images - mean[:, None, None]) / std[:, None, None])
    expected = features(tmp_path / "mine", images)
    torch.testing.assert_close(result, expected, atol=1e-4 * float(expected.abs().max()), rtol=0)
    assert made.difference < 1e-5 and made.largest > 0


@pytest.mark.parametrize("arch", ["resnet18", "densenet121"])
def test_timms_network_has_the_same_features(tmp_path, arch):
    saved(tmp_path / "mine", EncoderConfig(arch), InputSpec(64, 73, None, (0.5,) * 3, (0.25,) * 3))
    export(tmp_path / "mine", "timm", tmp_path / "theirs.pth")
    theirs = timm.create_model(arch, num_classes=0, checkpoint_path=str(tmp_path / "theirs.pth"))
    images = pictures(2, 64)
    with torch.inference_mode():
        result = theirs.eval()((images - 0.5) / 0.25)
    expected = features(tmp_path / "mine", images)
    torch.testing.assert_close(result, expected, atol=1e-4 * float(expected.abs().max()), rtol=0)


# --------------------------------------------------------------------------------- detectron2


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("conv1.weight", "stem.conv1.weight"),
        ("bn1.running_mean", "stem.conv1.norm.running_mean"),
        ("layer1.0.conv1.weight", "res2.0.conv1.weight"),
        ("layer1.0.downsample.0.weight", "res2.0.shortcut.weight"),
        ("layer1.0.downsample.1.bias", "res2.0.shortcut.norm.bias"),
        ("layer2.3.bn3.weight", "res3.3.conv3.norm.weight"),
        ("layer3.5.bn1.running_var", "res4.5.conv1.norm.running_var"),
        ("layer4.2.conv2.weight", "res5.2.conv2.weight"),
    ],
)
def test_names_are_detectron2s(ours, theirs):
    assert detectron2_key(ours) == theirs


def by_replacing(key: str) -> str:
    """The same names by a chain of replacements, as in MoCo's converter."""
    if "layer" not in key:
        key = f"stem.{key}"
    for i in (1, 2, 3, 4):
        key = key.replace(f"layer{i}", f"res{i + 1}").replace(f"bn{i}", f"conv{i}.norm")
    return key.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")


def test_a_pickle_holds_arrays_as_detectron2_loads_them(tmp_path):
    network = saved(tmp_path / "mine", SLIM50)
    made = export(tmp_path / "mine", "detectron2", tmp_path / "r50.pkl")
    held = pickle.loads((tmp_path / "r50.pkl").read_bytes())
    assert held["matching_heuristics"] is True and held["__author__"]
    state = network.state_dict()
    assert {by_replacing(key) for key in state} == set(held["model"])
    for key, value in state.items():
        assert torch.equal(torch.from_numpy(held["model"][by_replacing(key)]), value)
    for message in (
        "PIXEL_MEAN: [123.675, 116.28, 103.53]",
        "PIXEL_STD: [58.395, 57.12, 57.375]",
        'FORMAT: "RGB"',
        "STRIDE_IN_1X1: False",
        "DEPTH: 50",
        "RES2_OUT_CHANNELS: 32",
    ):
        assert message in made.notes
    assert (tmp_path / "r50.pkl.txt").read_text() == made.notes + "\n"


# --------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("config", "layout", "message"),
    [
        (EncoderConfig("resnet18", stem="small"), "torchvision", "no `stem: small`"),
        (EncoderConfig("resnet18", stem="small2"), "timm", "no `stem: small2`"),
        (EncoderConfig("resnet50", 8, "small2"), "detectron2", "no `stem: small2`"),
        (EncoderConfig("resnet18", width=8), "torchvision", "64 channels, this one with 8"),
        (EncoderConfig("resnet18", width=8), "timm", "64 channels, this one with 8"),
        (EncoderConfig("resnet10", width=8), "torchvision", "torchvision has no resnet10"),
        (EncoderConfig("resnet10", width=8), "timm", "timm has no resnet10"),
        (EncoderConfig("resnet18", width=8), "detectron2", "ResNets with bottleneck blocks"),
        (EncoderConfig("mobilenet_v3_small"), "timm", "timm has no mobilenet_v3_small"),
        (EncoderConfig("convnext_tiny"), "timm", "differs from torchvision's"),
        (EncoderConfig("mnasnet0_5"), "torchvision", "loads no state"),
    ],
)
def test_what_a_format_cannot_express_is_refused(config, layout, message):
    with torch.device("meta"), pytest.raises(UserError, match=message):
        exports.check_weights(
            FORMATS[layout].network(config), build_encoder(config).state_dict(), f"{layout}'s"
        )


@pytest.mark.parametrize("layout", ["torchvision", "timm", "detectron2"])
def test_a_refusal_leaves_nothing(tmp_path, layout):
    saved(tmp_path / "mine", SMALL)
    out = tmp_path / "out" / f"file{FORMATS[layout].suffixes[0]}"
    with pytest.raises(UserError):
        export(tmp_path / "mine", layout, out)
    assert not out.parent.exists()


@pytest.mark.parametrize("layout", FORMATS)
def test_a_suffix_of_another_format_is_refused(tmp_path, layout):
    saved(tmp_path / "mine", SMALL)
    with pytest.raises(UserError, match="must end in"):
        export(tmp_path / "mine", layout, tmp_path / "file.bin")


@pytest.mark.parametrize(
    ("layout", "config", "out"),
    [
        ("torchvision", RESNET18, "a.pth"),
        ("timm", RESNET18, "a.safetensors"),
        ("detectron2", SLIM50, "a.pkl"),
        ("safetensors", SMALL, "a.safetensors"),
    ],
)
def test_a_file_with_other_features_is_deleted(tmp_path, monkeypatch, layout, config, out):
    """Only the mean of one batch norm in the last stage is changed."""
    saved(tmp_path / "mine", config)
    write = FORMATS[layout].write

    def spoilt(weights, *rest):
        last = next(key for key in weights if key.startswith("layer4") and "running_mean" in key)
        write({**weights, last: weights[last] + 0.05}, *rest)

    spoiling = dataclasses.replace(FORMATS[layout], write=spoilt)
    monkeypatch.setitem(exports.FORMATS, layout, spoiling)
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="has other features"):
        export(tmp_path / "mine", layout, tmp_path / "out" / out)
    assert not list((tmp_path / "out").iterdir())


def test_a_network_of_another_width_is_another(tmp_path):
    saved(tmp_path / "mine", SMALL)
    encoder = exports.encoder_file.load(tmp_path / "mine", torch.device("cpu"))
    wider = random_network(EncoderConfig("resnet10", 16, "small"))
    assert exports.compare(encoder, wider)[0] == float("inf")
    assert exports.compare(encoder, encoder.network)[0] < 1e-6


# ----------------------------------------------------------------------------- the text file


@pytest.mark.parametrize(
    ("layout", "config", "out"),
    [("detectron2", SLIM50, "a.pkl"), ("safetensors", SMALL, "a.safetensors")],
)
def test_a_filter_is_announced_on_screen_and_in_the_text_file(tmp_path, layout, config, out):
    for folder, spec in (("with", InputSpec(32, 37, FILTER)), ("without", InputSpec(32, 37, None))):
        saved(tmp_path / folder, config, spec)
        arguments = ["export", str(tmp_path / folder), "--format", layout]
        place = tmp_path / f"{folder}-{out}"
        done = CliRunner().invoke(main, [*arguments, "--out", str(place)])
        assert done.exit_code == 0, done.output
        beside = Path(f"{place}.txt").read_text()
        assert "largest difference is" in done.output and beside in done.output
        assert ("WARNING: THIS ENCODER NEEDS HIGH-PASS" in beside) == (folder == "with")
        assert ("kernel 5 px, sigma 1.5 px" in beside) == (folder == "with")


def test_a_folder_without_an_encoder_is_a_users_mistake(tmp_path):
    arguments = ["export", str(tmp_path), "--format", "timm", "--out", str(tmp_path / "a.pth")]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 2 and "holds no encoder" in done.output


SPECS = st.builds(
    InputSpec,
    st.just(32),
    st.integers(32, 48),
    st.sampled_from([None, FILTER]),
    st.tuples(*[st.floats(0, 1)] * 3),
    st.tuples(*[st.floats(0.1, 2)] * 3),
)
CONFIGS = st.builds(
    EncoderConfig,
    st.sampled_from(["resnet10", "resnet18", "resnet50"]),
    st.sampled_from([4, 6]),
    st.sampled_from(["imagenet", "small", "small2"]),
)


@settings(max_examples=6)
@given(CONFIGS, SPECS, st.integers(0, 99))
def test_an_exported_and_imported_encoder_has_the_same_features(
    tmp_path_factory, config, spec, seed
):
    """Any encoder, exported to safetensors and imported with the values of the notes."""
    place = tmp_path_factory.mktemp("round")
    saved(place / "mine", config, spec, seed)
    out = place / "out.safetensors"
    export(place / "mine", "safetensors", out)
    expected = importing.Import(
        out, config.arch, width=config.width, stem=config.stem, size=spec.size,
        shorter=spec.shorter, mean=spec.mean, std=spec.std, filter=spec.filter,
    )  # fmt: skip
    importing.save(expected, importing.read(expected, "imports.x"), place / "back")
    images = pictures()
    assert torch.equal(features(place / "mine", images), features(place / "back", images))


@pytest.mark.parametrize("name", ["encoder.safetensors", "encoder.json"])
def test_an_encoder_that_changed_since_it_was_made_is_refused(tmp_path, name):
    saved(tmp_path, SMALL)
    outputs = {p.name: file_digest(p) for p in tmp_path.iterdir()}
    (tmp_path / "provenance.json").write_text(json.dumps({"outputs": outputs}))
    out = tmp_path / "out" / "encoder.safetensors"
    arguments = ["export", str(tmp_path), "--format", "safetensors", "--out", str(out)]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    out.unlink()
    content = bytearray((tmp_path / name).read_bytes())
    content[-9] ^= 1
    (tmp_path / name).write_bytes(content)
    result = CliRunner().invoke(main, arguments)
    assert (
        result.exit_code == 2
        and f"{name} is damaged (its sha256 is not the one in" in result.output
    )
    assert not out.exists()
