"""Additions as CONTRIBUTING.md describes them: one new file, and one line in params.yaml."""

import copy
import csv
import json
import math
import os
from pathlib import Path

import pytest
from PIL import Image

from salmask.provenance import file_digest
from tests.helpers.project import TINY, Project

pytestmark = pytest.mark.pipeline

MASK = '''"""Blank: the most salient patches of the query are 0."""

from salmask.masks import Mask
from salmask.randomness import Draws
from salmask.shapes import Masked, Pair


def blank(pair: Pair, draws: Draws, grid: int, *, share: float = 0.5) -> Masked:
    """The query's most salient patches are 0. share: of all patches."""
    assert pair.query_activation is not None
    maps = pair.query_activation.flatten(1)
    salient = maps.argsort(dim=1).argsort(dim=1) >= (1 - share) * maps.shape[1]
    side = pair.query.shape[-1] // grid
    hidden = salient.view(-1, 1, grid, grid)
    hidden = hidden.repeat_interleave(side, 2).repeat_interleave(side, 3)
    return Masked(pair.query.masked_fill(hidden, 0.0), pair.key)


MASK = Mask(blank, label="blank", reads_saliency=lambda options: True)
'''

FRAMEWORK = '''"""Alike: both views of an image should have the same features, whatever they are."""

import torch
from torch import Tensor

from salmask.encoders.backbones import build_encoder
from salmask.frameworks import BaseFramework
from salmask.losses import cosine
from salmask.params.encoder import EncoderConfig
from salmask.shapes import Views, Wiring


class Framework(BaseFramework):
    """One encoder, and nothing that keeps it from making everything the same."""

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
        found = [self.encoder(view) for view in views.images]
        terms = [w * cosine(found[i], found[j].detach()).mean() for i, j, w in views.pairs]
        return {"loss": self.strength * torch.stack(terms).sum()}
'''

DATASET = '''
from pathlib import Path

from salmask.datasets import Dataset
from salmask.datasets.listing import ListedFile, Listing


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

RUNS = {
    "blank": "  blank: {mask: {name: blank, share: 0.25}}",
    "alike": "  alike: {framework: {name: alike, strength: 3.0}}",
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """As far as saliency, before anything is added."""
    params = copy.deepcopy(TINY)
    params["data"]["images"] = {"train": 32, "val": 8, "decorrelated": 8}
    params["saliency"]["correction"] = 0
    params["train"] |= {"epochs": 2, "batch": 16}
    params["runs"] = {"plain": {}}
    params["transfer"] = {"shapes": TINY["data"]}
    made = Project(tmp_path_factory.mktemp("additions"), params)
    for stage in ("prepare", "localizer", "saliency"):
        made.stage(stage)
    return made


def sources(project: Project) -> dict[str, str]:
    """Digest of every file that a person may edit: all but what stages and Python leave."""
    found = {}
    for folder, below, files in os.walk(project.folder):
        kept = {".git", "artifacts", "runs", "__pycache__"}
        below[:] = [name for name in below if name not in kept]
        for path in (Path(folder) / name for name in files):
            found[str(path.relative_to(project.folder))] = file_digest(path)
    return found


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def use(project: Project, run: str) -> None:
    """Adds the run's one line to params.yaml, which is found sound."""
    insert(project, "runs:", RUNS[run])


def insert(project: Project, after: str, line: str) -> None:
    path = project.folder / "params.yaml"
    lines = path.read_text().splitlines()
    lines.insert(lines.index(after) + 1, line)
    path.write_text("\n".join(lines) + "\n")
    here = str(project.folder)  # the command is installed from elsewhere
    assert "params.yaml is sound" in project.run("salmask", "check", PYTHONPATH=here)


def trained(project: Project, run: str) -> tuple[dict, list[dict[str, str]]]:
    """encoder.json and history.csv of a run, made for real."""
    project.stage("pretrain", "--run", run)
    out = project.folder / "artifacts/pretrain" / run
    assert (out / "encoder.safetensors").stat().st_size > 10_000
    with (out / "history.csv").open() as stream:
        return json.loads((out / "encoder.json").read_text()), list(csv.DictReader(stream))


def test_a_mask_is_a_file(project: Project) -> None:
    before = sources(project)
    (project.folder / "salmask/masks/blank.py").write_text(MASK)
    use(project, "blank")

    described, history = trained(project, "blank")
    assert described["input"]["filter"] is None
    assert len(history) == 2 and all(math.isfinite(float(row["loss"])) for row in history)
    assert changed(before, sources(project)) == {"params.yaml", "salmask/masks/blank.py"}
    assert history != trained(project, "plain")[1]  # so it did mask something


def test_a_framework_is_a_file(project: Project) -> None:
    before = sources(project)
    (project.folder / "salmask/frameworks/alike.py").write_text(FRAMEWORK)
    use(project, "alike")

    _, history = trained(project, "alike")
    assert set(history[0]) == {"epoch", "lr", "loss"}
    losses = [float(row["loss"]) for row in history]
    assert -3 <= losses[1] < losses[0] < 0  # three times minus a cosine, and falling
    assert changed(before, sources(project)) == {"params.yaml", "salmask/frameworks/alike.py"}


def test_a_data_set_is_one_file(project: Project, tmp_path: Path) -> None:
    before = sources(project)
    for index, name in enumerate(("cat-a1", "cat-b1", "dog-a1", "dog-a2", "dog-b1", "unnamed")):
        Image.new("RGB", (16, 12), (40 * index, 9, 9)).save(tmp_path / f"{name}.png")
    (project.folder / "salmask/datasets/prefixed.py").write_text(DATASET)
    insert(project, "transfer:", f"  pets: {{name: prefixed, root: {tmp_path}, held: b}}")

    said = project.stage("transfer_data", "--name", "pets")
    assert "pets: 5 images (3 train, 2 val), 2 classes" in said
    told = json.loads((project.folder / "artifacts/transfer/pets/dataset.json").read_text())
    assert told["classes"] == ["cat", "dog"] and told["root"] == str(tmp_path)
    assert changed(before, sources(project)) == {"params.yaml", "salmask/datasets/prefixed.py"}
