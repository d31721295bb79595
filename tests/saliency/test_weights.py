import hashlib
import pickle
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from salmask.encoders import weight_files as weights
from salmask.errors import UserError

A, B = torch.arange(4.0), torch.ones(2, 3)
BYTES = b"the weights"
SHA = hashlib.sha256(BYTES).hexdigest()
NAME = f"net-{SHA[:8]}.pth"


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """torch.hub's folder of weights, which does not exist yet."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


@pytest.fixture
def published(tmp_path) -> Path:
    """The file behind a URL."""
    path = tmp_path / "net" / NAME
    path.parent.mkdir()
    path.write_bytes(BYTES)
    return path


def _torchvision(at: Path, path=None, download=False, sha256=None) -> weights.LocatedFile:
    return weights.of_torchvision(at.as_uri(), path, download, sha256)


def _all_files(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if p.is_file()]


# ------------------------------------------------------------------------- torchvision's files


def test_nothing_is_downloaded_by_default(hub, published):
    with pytest.raises(UserError, match=rf"no weights at {hub / NAME}: put torchvision's file"):
        _torchvision(published)
    with pytest.raises(UserError, match=rf"from file://.*{NAME}.*localizer\.download: true"):
        _torchvision(published)
    assert not hub.exists()


@pytest.mark.parametrize("sha256", [None, SHA, SHA.upper()], ids=["digits", "full", "upper case"])
def test_a_download_lands_in_torch_hubs_folder(hub, published, sha256):
    assert _torchvision(published, download=True, sha256=sha256) == (hub / NAME, SHA)
    assert [p.read_bytes() for p in _all_files(hub)] == [BYTES]


def test_an_existing_file_is_not_downloaded_again(hub, published):
    _torchvision(published, download=True)
    published.unlink()
    assert _torchvision(published, download=True) == (hub / NAME, SHA)
    assert _torchvision(published) == (hub / NAME, SHA)


def test_a_download_of_other_bytes_leaves_nothing(hub, published):
    published.write_bytes(b"other")
    with pytest.raises(UserError, match=rf'cannot be downloaded.*expected "{SHA[:8]}"'):
        _torchvision(published, download=True)
    assert hub.exists() and not list(hub.iterdir())


def test_a_download_with_the_right_first_digits_only_is_refused(hub, published):
    with pytest.raises(UserError, match=rf'expected "{SHA[:8]}{"0" * 56}"'):
        _torchvision(published, download=True, sha256=SHA[:8] + "0" * 56)
    assert not list(hub.iterdir())


def test_offline_says_where_to_put_the_file(hub, published):
    published.unlink()
    message = (
        rf"{NAME} cannot be downloaded to {hub / NAME}: .*"
        rf"Without a download: put torchvision's file {NAME}"
    )
    with pytest.raises(UserError, match=message):
        _torchvision(published, download=True)
    assert not list(hub.iterdir())


def test_a_folder_that_cannot_be_made_is_a_users_error(hub, published):
    hub.parent.write_text("a file where the folder should be")
    with pytest.raises(UserError, match="cannot be downloaded"):
        _torchvision(published, download=True)


def test_a_local_file_is_checked_by_the_digits_of_its_published_name(hub, published, tmp_path):
    copy = tmp_path / "mine.pth"
    shutil.copy(published, copy)
    assert _torchvision(published, copy) == (copy, SHA)
    copy.write_bytes(b"other")
    with pytest.raises(UserError, match=rf"not the expected file: .*expected {SHA[:8]} "):
        _torchvision(published, copy)
    assert copy.read_bytes() == b"other"
    copy.unlink()
    with pytest.raises(UserError, match=r"remove localizer\.path and set localizer\.download"):
        _torchvision(published, copy)


def test_a_wrong_file_in_the_hub_is_reported_and_kept(hub, published):
    hub.mkdir(parents=True)
    (hub / NAME).write_bytes(b"cut")
    with pytest.raises(UserError, match=r"not the expected file: .*Remove it; then put"):
        _torchvision(published, download=True)
    assert (hub / NAME).read_bytes() == b"cut"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sha256": SHA[:8]}, "localizer.sha256: must be all 64 hex digits"),
        ({"sha256": ""}, "localizer.sha256: must be all 64 hex digits"),
        ({"sha256": "0" * 64}, rf"localizer\.sha256: 0* does not agree with the file name {NAME}"),
        ({"path": Path("there.pth"), "download": True}, "give only one"),
    ],
)
def test_options_that_make_no_sense(hub, published, options, message):
    with pytest.raises(UserError, match=message):
        _torchvision(published, **options)


# -------------------------------------------------------------------------------- timm's files


timm_file = partial(weights.of_timm, "timm/net.a1", "model.safetensors")


@pytest.fixture
def served(published, monkeypatch) -> list[tuple[str, str]]:
    """Replaces timm's hub: every URL is that of the published file. The requests."""
    requests = []

    def url(repository: str, name: str) -> str:
        requests.append((repository, name))
        return published.as_uri()

    monkeypatch.setattr("huggingface_hub.hf_hub_url", url)
    return requests


def test_a_timm_download_lands_beside_torch_hubs(hub, served):
    place = hub / f"timm--net.a1-{SHA[:8]}.safetensors"
    assert timm_file(None, True, SHA) == (place, SHA)
    assert timm_file(None, True, SHA) == timm_file(None, False, SHA) == (place, SHA)
    assert served == [("timm/net.a1", "model.safetensors")]
    assert list(hub.iterdir()) == [place]


@pytest.mark.parametrize("download", [True, False])
def test_timm_weights_without_a_hash_are_refused(hub, served, download):
    with pytest.raises(UserError, match=r"model\.safetensors of timm/net\.a1.*localizer\.sha256"):
        timm_file(None, download, None)
    assert not served


def test_a_timm_file_is_not_downloaded_by_default(hub, served):
    with pytest.raises(UserError, match=r"no weights at .*: put model\.safetensors of timm"):
        timm_file(None, False, SHA)
    assert not served


def test_a_timm_download_of_other_bytes_leaves_nothing(hub, served):
    with pytest.raises(
        UserError, match=rf'cannot be downloaded.*expected "{"0" * 64}", got "{SHA}"'
    ):
        timm_file(None, True, "0" * 64)
    assert served and not list(hub.iterdir())


def test_timm_offline_says_what_to_do(hub, served, published):
    published.unlink()
    with pytest.raises(
        UserError, match=r"cannot be downloaded.*Without a download: name a file in timm's"
    ):
        timm_file(None, True, SHA)
    assert not list(hub.iterdir())


def test_a_local_timm_file_needs_no_hash(published):
    assert timm_file(published, False, None) == (published, SHA)
    with pytest.raises(UserError, match="not the expected file"):
        timm_file(published, False, "0" * 64)
    with pytest.raises(UserError, match=r"no weights at there: localizer\.path must name a file"):
        timm_file(Path("there"), False, None)
    with pytest.raises(UserError, match="give only one"):
        timm_file(published, True, SHA)


def test_an_arch_without_weights_from_timm_needs_a_file():
    with pytest.raises(UserError, match="publishes no weights for this arch: name a file"):
        weights.of_timm(None, "model.safetensors", None, True, SHA)


# ------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("suffix", [".pth", ".bin", ".safetensors"])
def test_floats_are_read_as_float32_and_counters_as_they_are(tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    tensors = {"a": A.half(), "n": torch.tensor(3)}
    (save_file if suffix == ".safetensors" else torch.save)(tensors, path)
    result = weights.read(path)
    assert result["a"].dtype == torch.float32 and torch.equal(result["a"], A)
    assert result["n"].dtype == torch.int64


def test_a_file_may_hold_its_weights_under_state_dict(tmp_path):
    torch.save({"state_dict": {"a": A}, "epoch": 3}, tmp_path / "weights.pth")
    assert list(weights.read(tmp_path / "weights.pth")) == ["a"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3, "net": {"a": A}}, "epoch, net are not tensors"),
        ([A], "not a state dict but a list"),
        ({"state_dict": A}, "not a state dict but a Tensor"),
    ],
)
def test_a_file_with_other_things_in_it_is_a_users_mistake(tmp_path, content, message):
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=rf"weights\.pth is .*{message}"):
        weights.read(tmp_path / "weights.pth")


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_bytes_that_are_no_weights_are_refused(tmp_path, name):
    (tmp_path / name).write_bytes(BYTES)
    with pytest.raises(UserError, match=f"{name} cannot be read as weights"):
        weights.read(tmp_path / name)


class _Code:
    def __reduce__(self):
        return (Path.touch, (Path("ran"),))


def test_a_pickle_with_code_in_it_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Path("weights.pth").open("wb") as stream:
        pickle.dump({"conv1.weight": _Code()}, stream, protocol=2)
    with pytest.raises(UserError, match="cannot be read as weights"):
        weights.read(Path("weights.pth"))
    torch.save({"conv1.weight": _Code()}, "weights.pth")
    with pytest.raises(UserError, match="cannot be read as weights"):
        weights.read(Path("weights.pth"))
    assert not Path("ran").exists()


# ------------------------------------------------------------------------------------- fitting


OURS = {"stem.weight": A + 9, "stem.num_batches_tracked": torch.tensor(0), "block.weight": B + 9}
FILE = Path("theirs.pth")


@pytest.mark.parametrize("prefix", ["", "module.", "module.encoder."])
@pytest.mark.parametrize("head", [True, False])
def test_shared_prefixes_and_heads_do_not_count(prefix, head):
    theirs = {f"{prefix}block.weight": B, f"{prefix}stem.weight": A}
    theirs |= {f"{prefix}fc.weight": B, f"{prefix}fc.bias": A} if head else {}
    result = weights.fitted(theirs, OURS, FILE, heads=("fc",))
    assert list(result) == list(OURS)
    assert torch.equal(result["stem.weight"], A) and torch.equal(result["block.weight"], B)


@pytest.mark.parametrize("theirs", ["", "features.", "module.", "module.features."])
@pytest.mark.parametrize("head", ["", "classifier.0."])
def test_our_own_prefix_may_be_missing(theirs, head):
    ours = {"features.0.weight": A + 9, "features.3.weight": B + 9}
    result = {f"{theirs}0.weight": A, f"{theirs}3.weight": B}
    if head and "features." in theirs:
        result[theirs.replace("features.", head) + "weight"] = A
    kept = weights.fitted(result, ours, FILE, heads=("classifier",))
    assert list(kept) == list(ours)
    assert torch.equal(kept["features.0.weight"], A) and torch.equal(kept["features.3.weight"], B)


def test_a_layer_with_a_name_like_a_head_is_kept():
    with pytest.raises(UserError, match=r"unknown: fc2\.weight"):
        weights.fitted(dict(OURS, **{"fc2.weight": A}), OURS, FILE, heads=("fc",))


def test_counters_may_be_missing_or_too_many():
    theirs = {k: v for k, v in OURS.items() if "num_batches" not in k}
    assert weights.fitted(theirs, OURS, FILE)["stem.num_batches_tracked"] == 0
    theirs["block.num_batches_tracked"] = torch.tensor(3)
    assert list(weights.fitted(theirs, OURS, FILE)) == list(OURS)


def test_densenet_files_of_torchvision_have_other_names_for_some_layers():
    names = ("norm1", "conv1", "norm2", "conv2")
    ours = {"norm0.weight": B} | {f"denselayer1.{name}.weight": A for name in names}
    theirs = {"norm0.weight": B}
    theirs |= {f"denselayer1.{name[:-1]}.{name[-1]}.weight": A for name in names}
    assert list(weights.fitted(theirs, ours, FILE)) == list(ours)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("stem.weight"), r"missing: stem\.weight"),
        (lambda t: t.update(extra=A), "unknown: extra"),
        (lambda t: t.update({"stem.weight": B}), r"of another shape: stem\.weight"),
        (lambda t: t.clear(), r"missing: stem\.weight, block\.weight"),
    ],
)
def test_keys_and_shapes_that_do_not_fit_are_named(change, message):
    theirs = dict(OURS)
    change(theirs)
    with pytest.raises(UserError, match=rf"theirs\.pth does not fit the architecture: {message}"):
        weights.fitted(theirs, OURS, FILE)
