"""Additions as CONTRIBUTING describes them: one new file, and one line of params.yaml."""

import copy
import csv
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from salmask.files import file_digest
from tests.helpers.project import Project
from tests.pipeline.conftest import FINISHED
from tests.pipeline.test_imported_encoder import write_checkpoint

pytestmark = pytest.mark.pipeline

MASK = '''"""Blank: the most salient patches of the query are 0."""

from salmask.masks import Mask
from salmask.randomness import Draws
from salmask.shapes import Masked, Pair


def blank(pair: Pair, draws: Draws, grid: int, *, share: float = 0.5) -> Masked:
    """The most salient patches of the query are 0. share: of all patches."""
    assert pair.query_activation is not None
    maps = pair.query_activation.flatten(1)
    salient = maps.argsort(dim=1).argsort(dim=1) >= (1 - share) * maps.shape[1]
    side = pair.query.shape[-1] // grid
    hidden = salient.view(-1, 1, grid, grid)
    hidden = hidden.repeat_interleave(side, 2).repeat_interleave(side, 3)
    return Masked(pair.query.masked_fill(hidden, 0.0), pair.key)


MASK = Mask(blank, label="blank", reads_saliency=lambda options: True)
'''

FRAMEWORK = '''"""Alike: both views of an image should have the same features."""

import torch
from torch import Tensor

from salmask.encoders.backbones import build_encoder
from salmask.frameworks import BaseFramework
from salmask.losses import cosine
from salmask.params.encoder import EncoderConfig
from salmask.shapes import Views, Wiring


class Framework(BaseFramework):
    """One encoder, without a defence against collapse."""

    def __init__(self, encoder: EncoderConfig, wiring: Wiring, *, strength: float = 1.0) -> None:
        super().__init__(encoder, wiring)
        self.encoder = build_encoder(encoder)
        self.strength = strength

    @classmethod
    def check(cls, batch, options) -> Wiring:
        return Wiring("alike", "alike")

    def forward(self, views: Views, progress: float) -> dict[str, Tensor]:
        return self.losses(views)

    def losses(self, views: Views) -> dict[str, Tensor]:
        features = [self.encoder(view) for view in views.images]
        terms = [w * cosine(features[i], features[j].detach()).mean() for i, j, w in views.pairs]
        return {"loss": self.strength * torch.stack(terms).sum()}
'''

DATASET = '''
from pathlib import Path

from salmask.datasets import Dataset
from salmask.datasets import ListedFile, Listing


def read(out: Path, seed: int, *, root: Path, held: str = "b") -> Listing:
    """Images called CLASS-NAME.png. held: prefix of the names of validation images."""
    paths = sorted(path.name for path in root.glob("*-*.png"))
    classes = sorted({path.partition("-")[0] for path in paths})
    files = []
    for path in paths:
        class_name, _, name = path.partition("-")
        split = "val" if name.startswith(held) else "train"
        files.append(ListedFile(path, classes.index(class_name), split))
    return Listing(root.resolve(), tuple(classes), files)


DATASET = Dataset(read)
'''

EVALUATION = '''"""The mean length of the features of each validation split."""

from salmask.evaluate import Evaluation
from salmask.evaluate.features import extract, labelled_splits


def run(encoders, manifest, job, *, power: float = 1.0) -> dict[str, float]:
    """`<split>_length`. power: of the lengths."""
    metrics = {}
    for split, prefix in labelled_splits(manifest).items():
        features = extract(encoders["trained"], manifest, split, job).features
        metrics[f"{prefix}length"] = float(features.norm(dim=1).pow(power).mean())
    return metrics


EVALUATION = Evaluation(run, every_run=True)
'''

LOCALIZER = '''"""Lite0 under another name."""

from dataclasses import replace

from salmask.saliency.localizers import FittedLocalizer
from salmask.saliency.localizers.lite0 import lite0


def other(*, suffix: str = "") -> FittedLocalizer:
    """suffix: of the name."""
    description, weights = lite0()
    return replace(description, name=f"other{suffix}"), weights


LOCALIZER = other
'''

LAYOUT = '''"""Checkpoints whose encoder is called `net`."""

from salmask.encoders.layouts import Layout

LAYOUT = Layout("net.", ("optimizer",))
'''


def sources(project: Project) -> dict[str, str]:
    """The digest of every file that a person edits, so not of what stages and Python write."""
    digests = {}
    for folder, folders, files in os.walk(project.folder):
        skipped = {".git", "artifacts", "runs", "__pycache__", "cache", "tmp"}
        folders[:] = [name for name in folders if name not in skipped]
        for path in (Path(folder) / name for name in files):
            digests[str(path.relative_to(project.folder))] = file_digest(path)
    return digests


def add(project: Project, file: str, text: str, params: dict[str, Any]) -> set[str]:
    """Adds a source file and parameters, which `salmask check` accepts. Returns the names of the
    files that differ."""
    before = sources(project)
    (project.folder / file).write_text(text)
    project.write_params(copy.deepcopy(FINISHED) | params)
    assert "params.yaml is valid" in project.salmask("check")
    after = sources(project)
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def trained(project: Project, run: str) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """encoder.json and the rows of history.csv of a run."""
    out = project.folder / "artifacts/pretrain" / run
    assert (out / "encoder.safetensors").stat().st_size > 10_000
    with (out / "history.csv").open() as stream:
        return json.loads((out / "encoder.json").read_text()), list(csv.DictReader(stream))


def test_a_mask_is_a_file(project: Project) -> None:
    """It trains, and the cost estimate, the gallery and the report show it."""
    runs = FINISHED["runs"] | {"blank": {"mask": {"name": "blank", "share": 0.25}}}
    params = {"runs": runs, "evaluate": FINISHED["evaluate"] | {"protocols": ["knn"]}}
    file = "salmask/masks/blank.py"
    assert add(project, file, MASK, params) == {"params.yaml", file}
    assert project.repro() == ["pretrain@blank", "evaluate@blank-knn", "report"]
    assert "blank" in (project.folder / "artifacts/report/index.html").read_text()
    description, history = trained(project, "blank")
    assert description["input"]["filter"] is None
    assert len(history) == 2 and all(math.isfinite(float(row["loss"])) for row in history)
    assert history != trained(project, "plain")[1]  # the mask has an effect

    shutil.copy(project.folder / "params.yaml", project.folder / "suites/mine.yaml")
    (line,) = [x for x in project.salmask("suite").splitlines() if x.startswith("mine ")]
    assert "?" not in line
    image = next((project.folder / "artifacts/data/images/val").iterdir())
    assert "x.png shows the masks" in project.salmask(
        "gallery", str(image), "--run", "blank", "--out", "x.png"
    )


def test_a_framework_is_a_file(project: Project) -> None:
    runs = FINISHED["runs"] | {"alike": {"framework": {"name": "alike", "strength": 3.0}}}
    file = "salmask/frameworks/alike.py"
    assert add(project, file, FRAMEWORK, {"runs": runs}) == {"params.yaml", file}
    project.stage("pretrain", "--run", "alike")
    _, history = trained(project, "alike")
    assert set(history[0]) == {"epoch", "lr", "loss"}
    losses = [float(row["loss"]) for row in history]
    assert -3 <= losses[1] < losses[0] < 0  # three times minus a cosine, and decreasing


def test_a_data_set_is_a_file(project: Project, tmp_path: Path) -> None:
    for index, name in enumerate(("cat-a1", "cat-b1", "dog-a1", "dog-a2", "dog-b1", "unnamed")):
        Image.new("RGB", (16, 12), (40 * index, 9, 9)).save(tmp_path / f"{name}.png")
    pets = {"pets": {"name": "prefixed", "root": str(tmp_path), "held": "b"}}
    file = "salmask/datasets/prefixed.py"
    transfer = {"transfer": FINISHED["transfer"] | pets}
    assert add(project, file, DATASET, transfer) == {"params.yaml", file}
    output = project.stage("transfer_data", "--name", "pets")
    assert "pets: 5 images (3 train, 2 val), 2 classes" in output
    dataset = json.loads((project.folder / "artifacts/transfer/pets/dataset.json").read_text())
    assert dataset["classes"] == ["cat", "dog"]


def test_an_evaluation_is_a_file(project: Project) -> None:
    evaluate = FINISHED["evaluate"] | {"protocols": ["knn", "linear_fast", "length"]}
    evaluate["length"] = {"power": 2.0}
    file = "salmask/evaluate/length.py"
    assert add(project, file, EVALUATION, {"evaluate": evaluate}) == {"params.yaml", file}
    assert project.repro() == ["evaluate@plain-length", "evaluate@blurred-length", "report"]
    results = json.loads((project.folder / "artifacts/report/results.json").read_text())
    assert all(row["metrics"]["length"] > 0 for row in results["rows"])


def test_a_localizer_is_a_file(project: Project) -> None:
    file = "salmask/saliency/localizers/other.py"
    params = {"localizer": {"name": "other", "suffix": "-a"}}
    assert add(project, file, LOCALIZER, params) == {"params.yaml", file}
    assert "localizer other-a" in project.stage("localizer")


def test_a_layout_of_checkpoints_is_a_file(project: Project) -> None:
    write_checkpoint(project, seed=0, prefix="net.")
    entry = {"path": "moco.pth.tar", "arch": "resnet18", "width": 8, "size": 32, "layout": "net"}
    file = "salmask/encoders/layouts/net.py"
    assert add(project, file, LAYOUT, {"imports": {"theirs": entry}}) == {"params.yaml", file}
    assert "layout net" in project.stage("imported", "--name", "theirs")
