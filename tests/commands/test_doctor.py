"""`salmask doctor`: what it finds, before hours are spent."""

import copy
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner, Result
from PIL import Image

from salmask.commands.cli import main
from salmask.commands.doctor import _duration
from tests.helpers.project import TINY


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twenty images of two classes."""
    rng = np.random.default_rng(0)
    for i in range(20):
        path = tmp_path / "photos" / ("cat" if i % 2 else "dog") / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(path)
    return tmp_path / "photos"


def doctor(folder: Path, monkeypatch: pytest.MonkeyPatch, **sections: object) -> Result:
    (folder / "dvc.yaml").write_text("stages: {}\n")
    (folder / "params.yaml").write_text(yaml.safe_dump(copy.deepcopy(TINY) | sections))
    monkeypatch.chdir(folder)
    return CliRunner().invoke(main, ["doctor"])


def imagefolder(root: Path) -> dict[str, object]:
    return {"name": "imagefolder", "root": root.name}  # relative to the project


def test_a_sound_project_is_told_what_it_will_take(photos, tmp_path, monkeypatch):
    said = doctor(tmp_path, monkeypatch, data=imagefolder(photos))
    assert said.exit_code == 0, said.output
    assert "stop" not in said.output
    assert "data: 20 files, 2 classes" in said.output
    assert "prepare: at most about 1 s" in said.output
    assert "localizer lite0: its weights are present" in said.output
    # 20 maps of 2x2 in float16, their means and digests: 20 * (8 + 4 + 32) bytes
    assert "images/s" in said.output and "0.0 MB" in said.output


def test_it_looks_from_the_projects_folder(photos, tmp_path, monkeypatch):
    doctor(tmp_path, monkeypatch, data=imagefolder(photos))
    monkeypatch.chdir(photos)
    assert CliRunner().invoke(main, ["doctor"]).exit_code == 0


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ({"data": {"name": "imagefolder", "root": "nowhere"}}, "nowhere is neither a folder nor"),
        (
            {"localizer": {"name": "file", "path": "w.pth", "arch": "resnet18"}},
            "no weights at w.pth",
        ),
        ({"train": {"epochs": -1}}, "epochs"),
    ],
    ids=["data", "weights", "params"],
)
def test_what_would_stop_a_run_is_told(tmp_path, monkeypatch, sections, told):
    said = doctor(tmp_path, monkeypatch, **sections)
    assert said.exit_code == 1
    assert told in said.output.partition("stop")[2]


def test_files_that_stop_dvc_are_told_with_the_way_out(photos, tmp_path, monkeypatch):
    (photos / "cat" / "gone.jpg").symlink_to(photos / "nothing.jpg")
    said = doctor(tmp_path, monkeypatch, data=imagefolder(photos))
    assert said.exit_code == 1
    assert "cat/gone.jpg: a broken link" in said.output
    assert "salmask fingerprint-folder photos images.json" in said.output
    assert CliRunner().invoke(main, ["fingerprint-folder", "photos", "images.json"]).exit_code == 0
    said = doctor(tmp_path, monkeypatch, data={"name": "imagefolder", "root": "images.json"})
    assert said.exit_code == 0, said.output
    note = "1 of 21 sampled files are not images, for example gone.jpg: a broken link"
    assert f"note  data: {note}" in said.output


def test_a_folder_without_a_single_image_stops(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("no image")
    said = doctor(tmp_path, monkeypatch, data=imagefolder(tmp_path / "photos"))
    assert said.exit_code == 1
    assert "1 of 1 sampled files are not images, for example a.jpg: not an image" in said.output


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.2, "1 s"), (89, "89 s"), (90, "2 min"), (5340, "89 min"), (9000, "2.5 h")],
)
def test_durations_are_durationed_for_people(seconds, said):
    assert _duration(seconds) == said
