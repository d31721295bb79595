"""Features that evaluations share: computed once, equal to features without the folder, resumed
after a kill, and never read after damage."""

import dataclasses
import json
import os
import signal

import numpy as np
import pytest
import torch
from torch import nn

from salmask.encoders.on_disk import Encoder, InputSpec
from salmask.errors import NonFiniteLossError
from salmask.evaluate import feature_cache, features, finetune, knn, linear_fast, transfer
from salmask.evaluate.features import extract, extract_rows
from salmask.files import tree_digest
from salmask.params.encoder import EncoderConfig

COUNT, BATCH = 23, 2  # batches of 2, shards of 6: four shards, of which the last has 5 rows


class Network(nn.Module):
    """Stands for a network: (B,3,H,W) -> (B,4). Counts its images."""

    images = 0

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(3, 4, generator=generator), requires_grad=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        Network.images += len(images)
        return images.mean((2, 3)) @ self.weight


def encoder(seed: int = 0, spec: InputSpec | None = None) -> Encoder:
    return Encoder(Network(seed), EncoderConfig(), spec or InputSpec(8, 8, None)).eval()


@pytest.fixture
def rows(make_manifest):
    rng = np.random.default_rng(0)
    images = []
    for split in ("train", "val"):
        for i in range(COUNT):
            pixels = rng.integers(0, 120, (8, 8, 3), dtype=np.uint8)
            pixels[..., i % 3] += 60
            images.append((pixels, i % 3, split))
    return make_manifest(images, ("red", "green", "blue"))


@pytest.fixture
def stored(job, tmp_path, monkeypatch):
    """A job with a folder for features, in small shards."""
    monkeypatch.setattr(features, "BATCH", BATCH)
    monkeypatch.setattr(feature_cache, "_BATCHES", 3)
    Network.images = 0
    return dataclasses.replace(job, features=tmp_path / "features")


def folder_of(job):
    (folder,) = job.features.iterdir()
    return folder


@pytest.mark.parametrize(
    ("run", "options"),
    [
        (knn.run, {"k": (1, 5)}),
        (linear_fast.run, {"l2": (1e-3, 1e-1)}),
        (transfer.run, {"l2_steps": 3}),
    ],
)
def test_scores_and_features_are_those_without_the_folder(rows, job, stored, run, options):
    expected = run({"trained": encoder()}, rows, job, **options)
    assert run({"trained": encoder()}, rows, stored, **options) == expected
    assert run({"trained": encoder()}, rows, stored, **options) == expected  # from the folder
    for split in ("train", "val"):
        result = extract(encoder(), rows, split, stored)
        assert torch.equal(result.features, extract(encoder(), rows, split, job).features)
        assert torch.equal(result.labels, rows.labels[rows.ids(split)])


def test_evaluations_and_runs_share_what_they_have_in_common(rows, stored):
    random = {f"random-{seed}": encoder(seed) for seed in (1, 2)}
    for trained in (encoder(5), encoder(6)):
        knn.run({"trained": trained} | random, rows, stored)
        linear_fast.run({"trained": trained}, rows, stored, l2=(1e-3, 1e-1))
    examples = 4 * 2  # one more image for each encoder and split, which gives the width
    assert Network.images == 4 * 2 * COUNT + examples
    Network.images = 0
    knn.run({"trained": encoder(5)} | random, rows, stored, k=(3,))
    assert Network.images == 0


def test_features_that_are_used_once_are_not_stored(rows, stored):
    options = {"shares": (50,), "lr": 0.1, "head_lr": 0.1, "epochs": 1, "batch": 4}
    finetune.run({"trained": encoder()}, rows, stored, images="stream", **options)
    assert not stored.features.exists()


@pytest.mark.parametrize(
    "other",
    [
        encoder(1),
        encoder(spec=InputSpec(8, 9, None)),
        encoder(spec=InputSpec(8, 8, {"name": "high_pass", "kernel": 3, "sigma": 1.0})),
        "precision",
        "rows",
        "manifest",
        "code",
    ],
    ids=["weights", "resize", "filter", "precision", "rows", "manifest", "code"],
)
def test_everything_that_decides_features_is_part_of_the_key(rows, stored, other, monkeypatch):
    one, ids = encoder(), rows.ids("train")
    extract_rows(one, rows, ids, stored)
    if other == "precision":
        one.precision = "bfloat16"
    if other == "manifest":
        rows = dataclasses.replace(rows, digest="0" * 64)
    if other == "code":
        monkeypatch.setattr(features, "code_digest", lambda *given: "0" * 64)
    other = other if isinstance(other, Encoder) else one
    extract_rows(other, rows, ids[1:] if other == "rows" else ids.flip(0), stored)
    assert len(list(stored.features.iterdir())) == 2


def test_bfloat16_takes_half_the_space_and_loses_nothing(rows, job, stored):
    one = encoder()
    one.precision = "bfloat16"
    result = extract(one, rows, "train", stored).features
    assert result.dtype == torch.float32
    assert torch.equal(result, extract(one, rows, "train", job).features)
    assert (folder_of(stored) / "features.bin").stat().st_size == COUNT * 4 * 2


@pytest.mark.parametrize("images", [1, 7, 12, 22])
def test_a_killed_computation_ends_in_the_same_bytes(rows, stored, images, monkeypatch, tmp_path):
    ids = rows.ids("train")
    whole = dataclasses.replace(stored, features=tmp_path / "whole")
    expected = extract_rows(encoder(), rows, ids, whole).features
    child = os.fork()
    if child == 0:  # pragma: no cover
        forward = Network.forward

        def dies(self, batch):
            if Network.images >= images + 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return forward(self, batch)

        Network.forward, Network.images = dies, 0
        extract_rows(encoder(), rows, ids, stored)
        os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    done = len(list((folder_of(stored) / "shards").glob("*.json")))
    assert done == max(0, images - 1) // 6 or done == images // 6
    Network.images = 0
    assert torch.equal(extract_rows(encoder(), rows, ids, stored).features, expected)
    assert Network.images <= COUNT - 6 * done + 1
    assert tree_digest(stored.features) == tree_digest(whole.features)


@pytest.mark.parametrize("damage", ["byte", "end", "mark", "no mark", "no file", "no key", "key"])
def test_damage_is_repaired(rows, stored, damage):
    expected = extract(encoder(), rows, "train", stored).features.clone()
    before, folder = tree_digest(stored.features), folder_of(stored)
    data, mark = folder / "features.bin", folder / "shards" / "00001.json"
    content = bytearray(data.read_bytes())
    if damage == "byte":
        content[6 * 16 + 3] ^= 1  # of the second shard
        data.write_bytes(bytes(content))
    elif damage == "end":
        data.write_bytes(bytes(content[:-1]))
    elif damage == "mark":
        mark.write_text("{}")
    elif damage == "key":
        key = folder / "key.json"
        key.write_text(key.read_text().replace('"width": 4', '"width": 6'))
    else:
        {"no mark": mark, "no file": data, "no key": folder / "key.json"}[damage].unlink()
    Network.images = 0
    assert torch.equal(extract(encoder(), rows, "train", stored).features, expected)
    computed = {"end": 5, "no file": COUNT, "no key": 1, "key": 1}.get(damage, 6)
    assert Network.images == computed
    assert tree_digest(stored.features) == before


def test_changes_of_the_tensor_do_not_reach_the_file(rows, stored):
    extract(encoder(), rows, "train", stored).features.zero_()
    before = extract(encoder(), rows, "train", stored).features
    assert before.abs().sum() > 0


@pytest.mark.parametrize("workers", [0, 1])
def test_features_of_images_that_could_not_be_read_are_computed_again(rows, stored, workers):
    stored = dataclasses.replace(stored, workers=workers)
    file = rows.file(8)  # of the second shard
    content = file.read_bytes()
    file.unlink()
    gray = extract(encoder(), rows, "train", stored).features.clone()
    marks = {path.stem for path in (folder_of(stored) / "shards").iterdir()}
    assert marks == {"00000", "00002", "00003"}
    file.write_bytes(content)
    result = extract(encoder(), rows, "train", stored).features
    assert (result != gray).any(dim=1).nonzero().tolist() == [[8]]


def test_the_key_can_be_read(rows, stored):
    extract(encoder(), rows, "train", stored)
    key = json.loads((folder_of(stored) / "key.json").read_text())
    assert (key["manifest"], key["width"], key["dtype"]) == (rows.digest, 4, "float32")


@pytest.mark.parametrize("value", [float("nan"), 3e38])  # 3e38 is finite, and its features are not
def test_features_that_are_not_finite_are_refused(rows, job, stored, value):
    broken = encoder()
    broken.network.weight[0, 1] = value
    broken.network.weight[1, 1] = value
    for each in (job, stored):
        with pytest.raises(NonFiniteLossError, match="its training diverged"):
            extract(broken, rows, "val", each)
