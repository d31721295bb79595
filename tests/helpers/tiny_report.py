"""Tiny made-up projects with everything that a report reads."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner
from PIL import Image

from salmask.data import manifest
from salmask.data.prepare import write_manifest
from salmask.datasets import ListedFile, Listing
from salmask.encoders import on_disk as encoder_file
from salmask.encoders.backbones import build_encoder
from salmask.encoders.on_disk import InputSpec
from salmask.files import write_json
from salmask.masks.options import input_filter
from salmask.params.run import RunConfig, read_run
from salmask.params.yaml_file import Params
from salmask.provenance import recipe, record
from salmask.saliency.store_rows import StorePlan, scaled
from stages.report import main as stage
from tests.helpers.small_store import fill

EVIL = "<script>alert(1)</script>"
KNN = {"knn20_top1": 50.0, "knn200_top1": 40.0, "random_knn20_top1": 20.0}
CPU = torch.device("cpu")


def picture(index: int, width: int = 24, height: int = 24) -> Image.Image:
    generator = torch.Generator().manual_seed(index)
    pixels = torch.randint(0, 255, (height, width, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def params(**runs: dict) -> dict:
    return {
        "seed": 0,
        "encoder": {"arch": "resnet10", "width": 8, "stem": "small2"},
        "view": {"size": 16, "grid": 4, "crop": [0.5, 1.0], "blur_p": 0.0},
        "mask": {"name": "none"},
        "framework": {"name": "moco", "bn_group": 4},
        "train": {"epochs": 2, "warmup_epochs": 1, "batch": 4},
        "runs": runs or {"plain": {}, "masked": {"mask": {"name": "high_pass"}}},
        "evaluate": {"protocols": ["knn", "linear_fast"], "chosen": {}},
        "transfer": {},
        "tables": {},
        "sweeps": {},
        "detect": {},
    }


def evaluated(root: Path, run: str, protocol: str, metrics: dict[str, float]) -> None:
    folder = root / "artifacts/evaluate" / run / protocol
    write_json(folder / "metrics.json", metrics)
    made = recipe(protocol, run, [], {"seed": 0}, [Path("artifacts/pretrain") / run], root)
    write_json(folder / "provenance.json", record(made, folder, CPU))


def make_project(
    root: Path, classes: tuple[str, ...] = ("cat", EVIL), splits: tuple[str, ...] = ("train", "val")
) -> Path:
    """A project whose pipeline has run, with images of two shapes and random saliency."""
    (root / "dvc.yaml").write_text("stages: {}\n")
    (root / "params.yaml").write_text(yaml.safe_dump(params(), sort_keys=False))
    data, listed = root / "artifacts/data", []
    for split in splits:
        for i in range(12):
            path = f"{split}/{i}.png"
            (data / "images" / split).mkdir(parents=True, exist_ok=True)
            picture(i, 24 + 8 * (i % 2)).save(data / "images" / path)
            listed.append(ListedFile(path, i % len(classes) if classes else -1, split))
    (data / "images/train/broken.png").write_text("not an image")
    listed.append(ListedFile("train/broken.png", -1, "train"))
    write_manifest(Listing(data / "images", classes, listed), "mine", data, 0.5)
    made = recipe("prepare", "", [], {"seed": 0}, [], root)
    write_json(data / "provenance.json", record(made, data, CPU, pattern="*"))
    rows = manifest.load(data)
    plan = StorePlan(len(rows), 100, {64: (3, 3)}, {"manifest": rows.digest})
    maps = torch.rand(len(rows), 3, 3, generator=torch.Generator().manual_seed(0))
    (root / "artifacts/saliency").mkdir()
    store_rows = scaled({64: maps}, torch.ones(len(rows), 32, dtype=torch.uint8))
    fill(root / "artifacts/saliency/saliency.zarr", plan, lambda _: iter([store_rows]))
    for name in params()["runs"]:
        config = read_run(Params(params()), name)
        folder = root / "artifacts/pretrain" / name
        weights = build_encoder(config.encoder, seed=0).state_dict()
        spec = InputSpec.for_views(16, input_filter(config.mask, 16))
        encoder_file.save(weights, config.encoder, spec, folder)
        (folder / "history.csv").write_text("epoch,lr,loss,other\n1,0.1,3,1\n2,0,2,4\n")
        made = recipe("pretrain", name, [], {"seed": 0}, [Path("artifacts/data")], root)
        write_json(folder / "provenance.json", record(made, folder, CPU))
        evaluated(root, name, "knn", KNN if classes else {})
        evaluated(root, name, "linear_fast", {"linear_fast_top1": 61.0} if classes else {})
    return root


def run_stage(project: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """Runs the stage `report`; returns the page and the output in the terminal."""
    monkeypatch.chdir(project)
    done = CliRunner().invoke(stage, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return (project / "artifacts/report/index.html").read_text(), done.output


def a_run(**changes: object) -> RunConfig:
    common = params() | {"encoder": {"arch": "resnet50"}, "mask": {"name": "high_pass"}}
    return replace(read_run(Params(common), "plain"), **changes)  # type: ignore[arg-type]
