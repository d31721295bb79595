"""The commands of `salmask`, run from the command line."""

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner, Result
from PIL import Image

from salmask.commands.cli import main
from tests.helpers.project import TINY


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def git(folder: Path, *arguments: str) -> None:
    who = ["-c", "user.name=Test", "-c", "user.email=test@example.org"]
    subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A committed project with the tiny params and one suite."""
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(TINY))
    (tmp_path / "suites").mkdir()
    (tmp_path / "suites" / "other.yaml").write_text(yaml.safe_dump(TINY | {"seed": 7}))
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "start")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_check_accepts_what_fits(project: Path) -> None:
    assert call("check").output.strip() == "params.yaml is valid"
    (project / "params.yaml").write_text(yaml.safe_dump(TINY | {"probe": {"every": 1}}))
    assert call("check").output.strip() == "params.yaml is valid"


DATA = {"name": "demo", "root": "x"}
SCENES = {"data": DATA, "training": {"recipe": "voc"}}


def chosen(**runs: list[str]) -> dict[str, Any]:
    """The evaluations of TINY with some chosen for some runs."""
    return TINY["evaluate"] | {"chosen": TINY["evaluate"]["chosen"] | runs}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            {"probe": {"every": 2, "image": 9}},
            "params.yaml, line 61: probe.image: no such key (did you mean `images`?)",
        ),
        ({"mask": {"name": "blurr"}}, "mask.name: no `blurr` here; choose from adios, blur, erase"),
        ({"framework": {"name": "moco", "queue": 100}}, "not a multiple of train.batch (32)"),
        (
            {"framework": {"name": "moco", "bn_group": 5, "queue": 64}},
            "framework.bn_group: 5 does not divide train.batch (32) (runs blurred, plain)",
        ),
        ({"framework": {"name": "supervised"}}, "framework.classes: is missing: a whole number"),
        (
            {
                "framework": {"name": "supervised", "classes": 10},
                "runs": {"a": {"mask": {"name": "mixmask"}}},
            },
            "runs.a.mask.name: supervised training compares no views and trains on",
        ),
        ({"localizer": {"name": "lite1"}}, "choose from coco_resnet50, encoder, file, lite0"),
        ({"data": {"name": "demo", "root": "x", "colour": 1}}, "data.colour: no such key"),
        ({"view": {"size": 32, "grid": 5}}, "view.grid: 5 does not divide view.size (32)"),
        (
            {"evaluate": chosen(linear=["nobody"])},
            'evaluate.chosen.linear: no run "nobody"; there are: blurred, plain',
        ),
        ({"evaluate": chosen(lineal=["plain"])}, "lineal: no such key"),
        (
            {"evaluate": chosen(variance=["plain"], variance_through=["nobody"])},
            'evaluate.chosen.variance_through: no run "nobody"',
        ),
        (
            {"evaluate": chosen(linear=["plain"]) | {"protocols": ["knn", "linear"]}},
            "linear has a stage of its own: list its runs under",
        ),
        (
            {"evaluate": TINY["evaluate"] | {"chosen": {"linear": []}}},
            "evaluate.chosen.finetune: is missing",
        ),
        (
            {"evaluate": chosen(finetune=["plain"]) | {"finetune": {"share": 1}}},
            "finetune.share: no such key (did you mean `shares`?)",
        ),
        ({"transfer": {"a b": TINY["data"]}}, "transfer.a b: a name is made of a-z, 0-9 and -"),
        (
            {"detect": {"voc": {"data": DATA, "training": {}}}},
            "detect.voc.training.recipe: is missing: a text",
        ),
        (
            {"detect": {"a": SCENES | {"lr": 1}}},
            "detect.a.lr: no such key; allowed: data, training",
        ),
        (
            {"detect": {"a": {"data": DATA, "training": {"recipe": "voc", "iterations": 5}}}},
            "must increase and be smaller than iterations (5)",
        ),
        ({"detect": {"a_b": SCENES}}, "detect.a_b: a name is made of a-z, 0-9 and -"),
        ({"evaluate": chosen(detect=["nobody"])}, 'evaluate.chosen.detect: no run "nobody"'),
        (
            {
                "detect": {"a": SCENES},
                "evaluate": chosen(detect=["plain"]),
                "encoder": {"arch": "mobilenet_v3_small"},
            },
            "evaluate.chosen.detect: plain: encoder.arch: mobilenet_v3_small has no layer1",
        ),
        (
            {"transfer": {"pets": {"name": "petz"}}},
            "no `petz` here; choose from caltech101, cifar10",
        ),
        (
            {"mascs": {"name": "blur"}},
            "mascs: no such key (did you mean `mask`?); allowed: seed, data",
        ),
        (
            {"evaluate": TINY["evaluate"] | {"knn20": {}}},
            "evaluate.knn20: no such key (did you mean `knn`?); allowed: protocols, chosen, fine",
        ),
        (
            # checked although no run has it
            {"evaluate": TINY["evaluate"] | {"linear": {"rate": 1.0}}},
            "evaluate.linear.rate: no such key; allowed: preset, lr, batch",
        ),
        (
            {"evaluate": chosen(finetune=["plain"]) | {"finetune": {"shares": [5]}}},
            "evaluate.finetune: preset mixmask has no rates for 5% of the labels",
        ),
        (
            {"runs": {"a": {"mask": {"name": "adios"}}}, "evaluate": chosen(variance=["a"])},
            "evaluate.variance.masked: the mask of run a (adios) learns",
        ),
    ],
)
def test_check_names_what_does_not_fit(
    project: Path, edit: dict[str, object], message: str
) -> None:
    (project / "params.yaml").write_text(yaml.safe_dump(TINY | edit))
    result = call("check")
    assert result.exit_code == 2 and message in result.output, result.output


def test_check_names_all_mistakes_at_once(project: Path) -> None:
    """The mistakes of params.yaml, and of the data that it names."""
    edit: dict[str, Any] = {
        "seed": -1,
        "data": {"name": "imagefolder", "root": "nowhere"},
        "framework": {"name": "moco", "queue": 0, "temperature": 0, "dim": 0, "momentum": 2},
        "mask": {"name": "high_pass", "sigma": 0, "ratio": 0.3},
        "localizer": {"name": "lite1"},
        "saliency": {"levels": 128},
        "evaluate": chosen(linear=[]) | {"protocols": ["umap"], "knn": {"k": [0]}, "linear": None},
        "transfer": {"shapes": {"name": "demo", "root": "x", "images": {"train": -5}}},
        "runs": {"a": {"train.lr": 0.01}, "b": {"trian": {}}, "c" * 240: {}},
    }
    (project / "params.yaml").write_text(yaml.safe_dump(TINY | edit, sort_keys=False))
    result = call("check")
    assert result.exit_code == 2
    lines = result.output.splitlines()
    keys = {line.split(": ")[1] for line in lines if line.startswith("params.yaml, line ")}
    assert keys >= {
        "seed", "data.root", "framework.queue", "framework.temperature", "framework.dim",
        "framework.momentum", "mask.sigma", "mask.ratio", "localizer.name", "saliency.levels",
        "evaluate.protocols", "evaluate.knn.k", "evaluate.linear", "transfer.shapes.images.train",
        "runs.a.train.lr", "runs.b.trian", f"runs.{'c' * 240}",
    }  # fmt: skip
    assert lines[0] == f"error: {len(lines) - 1} mistakes:"


def test_check_compares_the_batch_with_the_images(project: Path) -> None:
    (project / "params.yaml").write_text(yaml.safe_dump(TINY | {"train": {"batch": 256}}))
    data = project / "artifacts" / "data"
    data.mkdir(parents=True)
    (data / "dataset.json").write_text('{"images": {"train": 96}}')
    assert "more than the 96" not in call("check").output  # of which data is not known
    (data / "provenance.json").write_text(json.dumps({"params": {"data": TINY["data"]}}))
    output = call("check").output
    assert "train.batch: 256 is more than the 96 training images" in output


def test_a_suite_takes_the_place_of_params(project: Path) -> None:
    assert call("suite", "other").exit_code == 0
    assert yaml.safe_load((project / "params.yaml").read_text())["seed"] == 7


def test_a_suite_may_follow_another_that_nobody_has_edited(project: Path) -> None:
    assert call("suite", "other").exit_code == 0
    seeds = {"extends": "other", "runs": {"plain": {"seed": [0, 1]}}}
    (project / "suites" / "seeds.yaml").write_text(yaml.safe_dump(seeds))
    result = call("suite", "seeds")
    assert "params.yaml is now suites/seeds.yaml (3 runs)" in result.output
    runs = yaml.safe_load((project / "params.yaml").read_text())["runs"]
    assert runs["plain-seed-0"] == {"seed": 0} and "plain" not in runs
    assert call("check").exit_code == 0


def test_without_a_name_suites_are_listed_with_what_they_need(project: Path) -> None:
    large = {"extends": "other", "data": {"name": "cifar100", "root": "data/nowhere"}}
    (project / "suites" / "large.yaml").write_text(yaml.safe_dump(large))
    (project / "suites" / "wrong.yaml").write_text(yaml.safe_dump({"extends": "nobody"}))
    lines = call("suite").output.splitlines()
    cells = {line.split()[0]: line.split() for line in lines}
    assert cells["large"][1] == "2" and lines[2].endswith("cifar100 (missing)")
    assert cells["other"][1] == "2" and cells["other"][-1] == "demo"
    assert "wrong is not valid: suites/wrong.yaml: extends: there is no suites/nobody.yaml" in lines


def test_a_suite_never_overwrites_uncommitted_edits(project: Path) -> None:
    edited = (project / "params.yaml").read_text() + "\n# mine\n"
    (project / "params.yaml").write_text(edited)
    result = call("suite", "other")
    assert result.exit_code == 2 and "uncommitted edits" in result.output
    assert (project / "params.yaml").read_text() == edited


def test_an_unknown_suite_lists_the_known_suites(project: Path) -> None:
    result = call("suite", "chin")
    assert result.exit_code == 2 and "there are: other" in result.output


def test_results_before_a_report_says_what_to_run(project: Path) -> None:
    result = call("results")
    assert result.exit_code == 2 and "dvc repro" in result.output


def test_lineage_of_something_else_is_refused(project: Path) -> None:
    result = call("lineage", "params.yaml")
    assert result.exit_code == 2 and "has no provenance" in result.output


def test_outside_a_project_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = call("check")
    assert result.exit_code == 2 and "no dvc.yaml" in result.output


def test_gallery_draws_pictures_of_any_shape(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 90, 3), dtype=np.uint8)
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.fromarray(pixels).save(folder / "wide.png")
    Image.fromarray(pixels[:, :20]).save(folder / "tall.jpg")
    out, again = tmp_path / "new" / "sheet.png", tmp_path / "new" / "again.png"
    pictures = [str(folder / name) for name in ("tall.jpg", "wide.png")]
    sizes = ["--size", "64", "--grid", "4"]
    result = call("gallery", *pictures, "--out", str(out), *sizes)
    assert result.exit_code == 0, result.output
    assert Image.open(out).width > 300 and "one image" not in result.output
    call("gallery", str(folder), "--out", str(again), *sizes)
    assert again.read_bytes() == out.read_bytes()
    result = call("gallery", pictures[0], "--out", str(again), *sizes)
    assert "one image: masks that mix" in result.output


def test_gallery_names_the_file_it_cannot_read(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("hello")
    result = call("gallery", str(tmp_path / "text.jpg"))
    assert result.exit_code == 2 and "text.jpg cannot be read" in result.output
