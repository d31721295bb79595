"""`salmask doctor`: its findings about machine, parameters, data and weights."""

import copy
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner, Result
from PIL import Image

from salmask.commands import doctor as doctor_module
from salmask.commands.cli import main
from salmask.commands.doctor import _duration
from salmask.data import worker_processes
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


def test_a_valid_project_gets_an_estimate(photos, tmp_path, monkeypatch):
    result = doctor(tmp_path, monkeypatch, data=imagefolder(photos))
    assert result.exit_code == 0, result.output
    assert "stop" not in result.output
    assert "data: 20 files, 2 classes" in result.output
    assert "prepare: at most about 1 s" in result.output
    assert "localizer lite0: its weights are present" in result.output
    # 20 maps of 2x2 in float16, their means and digests: 20 * (8 + 4 + 32) bytes
    assert "images/s" in result.output and "0.0 MB" in result.output


def test_it_looks_from_the_projects_folder(photos, tmp_path, monkeypatch):
    doctor(tmp_path, monkeypatch, data=imagefolder(photos))
    monkeypatch.chdir(photos)
    assert CliRunner().invoke(main, ["doctor"]).exit_code == 0


@pytest.mark.parametrize(
    ("sections", "message"),
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
def test_an_error_stops_the_examination(tmp_path, monkeypatch, sections, message):
    result = doctor(tmp_path, monkeypatch, **sections)
    assert result.exit_code == 1
    assert message in result.output.partition("stop")[2]


def test_files_that_dvc_cannot_read_are_listed_with_a_solution(photos, tmp_path, monkeypatch):
    (photos / "cat" / "gone.jpg").symlink_to(photos / "nothing.jpg")
    result = doctor(tmp_path, monkeypatch, data=imagefolder(photos))
    assert result.exit_code == 1
    assert "cat/gone.jpg: a broken link" in result.output
    assert "salmask fingerprint-folder photos images.json" in result.output
    assert CliRunner().invoke(main, ["fingerprint-folder", "photos", "images.json"]).exit_code == 0
    result = doctor(tmp_path, monkeypatch, data={"name": "imagefolder", "root": "images.json"})
    assert result.exit_code == 0, result.output
    note = "1 of 21 sampled files are not images, for example gone.jpg: a broken link"
    assert f"note  data: {note}" in result.output


def test_a_folder_without_a_single_image_stops(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("no image")
    result = doctor(tmp_path, monkeypatch, data=imagefolder(tmp_path / "photos"))
    assert result.exit_code == 1
    assert "1 of 1 sampled files are not images, for example a.jpg: not an image" in result.output


@pytest.mark.parametrize(
    ("free", "code", "message"),
    [
        # Batches of 32 images of 64 px are the largest: 393,216 bytes.
        (1_000_000, 1, "stop  saliency.batch: worker processes cannot hand over batches of 0.4 MB"),
        (1_200_000, 0, "note  saliency.batch: the free shared memory (/dev/shm) holds the batches"),
        (9_000_000, 0, ""),
    ],
)
def test_too_little_shared_memory_is_named(tmp_path, monkeypatch, free, code, message):
    monkeypatch.setattr(worker_processes, "free_shared_memory", lambda: free)
    (tmp_path / "two.yaml").write_text("cpus: 2\n")
    monkeypatch.setenv("SALMASK_CLUSTER", "two.yaml")
    result = doctor(tmp_path, monkeypatch)
    assert result.exit_code == code and message in result.output, result.output
    assert ("shared memory" in result.output) == bool(message)


DISKS = [(100, 1, "GB are free: set SALMASK_RUNS"), (10**12, 0, "data.pack: about 0.0 GB in ")]


@pytest.mark.parametrize(("free", "code", "message"), DISKS)
def test_a_pack_that_does_not_fit_is_named(photos, tmp_path, monkeypatch, free, code, message):
    usage = doctor_module.shutil.disk_usage(tmp_path)._replace(free=free)
    monkeypatch.setattr(doctor_module.shutil, "disk_usage", lambda path: usage)
    result = doctor(tmp_path, monkeypatch, data=imagefolder(photos) | {"pack": True})
    assert message in result.output and result.exit_code == code


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "1 s"), (89, "89 s"), (90, "2 min"), (5340, "89 min"), (9000, "2.5 h")],
)
def test_durations_have_a_suitable_unit(seconds, text):
    assert _duration(seconds) == text


def test_an_empty_dvc_lock_is_removed(photos, tmp_path, monkeypatch):
    (tmp_path / "dvc.lock").touch()
    result = doctor(tmp_path, monkeypatch, data=imagefolder(photos))
    assert result.exit_code == 0, result.output
    assert "dvc.lock was empty" in result.output and not (tmp_path / "dvc.lock").exists()


def test_drawings_of_the_demo_beside_other_images_are_named(photos, tmp_path, monkeypatch):
    drawings = {"name": "demo", "root": "params.yaml", "images": {"train": 8, "val": 8}}
    evaluate = copy.deepcopy(TINY["evaluate"])
    sections = {"data": imagefolder(photos), "transfer": {"shapes": drawings}}
    result = doctor(tmp_path, monkeypatch, **sections, evaluate=evaluate)
    assert result.exit_code == 0 and "drawings of the demo" not in result.output
    evaluate["chosen"]["transfer"] = list(TINY["runs"])[:1]
    result = doctor(tmp_path, monkeypatch, **sections, evaluate=evaluate)
    assert "transfer.shapes are drawings of the demo" in result.output, result.output
