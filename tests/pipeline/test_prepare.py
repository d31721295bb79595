"""The stage prepare on unusual folders, and trainings whose images disappear."""

import copy
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from salmask.data.loader import Crops
from salmask.data.manifest import Manifest
from salmask.errors import DataGoneError
from salmask.files import tree_digest
from salmask.job import Job
from salmask.params.encoder import EncoderConfig
from salmask.params.run import RunConfig
from salmask.params.train import TrainConfig
from salmask.params.values import Choice
from salmask.params.view import ViewConfig
from salmask.train import checkpoint
from salmask.train import pretrain as loop
from tests.helpers.project import TINY, Project

pytestmark = pytest.mark.pipeline


def draw(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shade = sum(os.fsencode(name)) % 200
        Image.effect_noise((40, 32), 20 + shade).convert("RGB").save(root / name)


def project_of(tmp_path: Path, **data: object) -> Project:
    """A project with the images in tmp_path/photos."""
    params = copy.deepcopy(TINY)
    params["data"] = {"name": "imagefolder", "root": str(tmp_path / "photos"), **data}
    params["train"] |= {"images": "stream", "epochs": 15}
    params["runs"] = {"plain": {}}
    return Project(tmp_path / "project", params)


def data(project: Project) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes() for path in (project.folder / "artifacts/data").glob("*.*")
    }


def test_notes_are_printed_and_written(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    draw(photos, "train/cat/1.png", "train/dog\udcff/2.png", "val/cat/3.png", "train/cat/4,\n.png")
    (photos / "val/cat/copy.png").write_bytes((photos / "train/cat/1.png").read_bytes())
    (photos / "train/nothing").mkdir()
    Image.new("RGB", (5000, 20)).save(photos / "train/cat/thin.png")
    project = project_of(tmp_path, min_side=32, max_rejected=0.5)
    output = project.stage("prepare")
    assert "imagefolder: 5 images (3 train, 2 val), 2 classes" in output
    assert "1 files were rejected; the reasons are in artifacts/data/rejected.csv" in output
    notes = json.loads(data(project)["dataset.json"])["notes"]
    assert [note.split(":")[0] for note in notes] == [
        "duplicate content",
        "leak",
        "classes of train without images in val",
        "folders without images, which make no class",
    ]
    assert all(f"note: {note}" in output for note in notes)
    assert "dog\\udcff" in output
    assert data(project)["duplicates.csv"] == b"path,same_as\nval/cat/copy.png,train/cat/1.png\n"
    rejected = b"train/cat/thin.png,5000x20 px: a side is below data.min_side (32)\n"
    assert data(project)["rejected.csv"] == b"path,reason\n" + rejected


def test_only_new_images_are_read_again(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    draw(photos, *[f"{index:02d}.png" for index in range(10)])
    project = project_of(tmp_path)
    project.stage("prepare")
    before = data(project)
    for path in photos.iterdir():  # reading them again would reject them
        times = path.stat()
        path.write_bytes(bytes(times.st_size))
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    project.stage("prepare")
    assert data(project) == before
    draw(photos, "new.png")
    assert "11 images" in project.stage("prepare")
    assert len(list((project.folder / "runs").glob("prepare-*/inspections.sqlite"))) == 1


def test_the_pack_is_outside_the_artifacts_and_changes_no_later_stage(tmp_path: Path) -> None:
    draw(tmp_path / "photos", *[f"{index:02d}.png" for index in range(12)])
    project = project_of(tmp_path, pack=True)
    project.stage("prepare")
    with_pack = data(project)
    place = json.loads(with_pack["location.json"])["pack"]
    pack = (project.folder / "artifacts/data" / place).resolve()
    assert pack.parent == project.folder / "runs/packs"
    assert {path.name for path in pack.iterdir()} == {"00000.tar", "index.safetensors", "lock"}
    assert "data.pack: about" in project.salmask("doctor")
    project_of(tmp_path).stage("prepare")
    without = data(project)
    assert "pack" not in json.loads(without.pop("location.json"))
    assert {name: with_pack[name] for name in without if name != "provenance.json"} == {
        name: content for name, content in without.items() if name != "provenance.json"
    }


def test_two_preparations_at_once_end_in_the_same_bytes(tmp_path: Path) -> None:
    draw(tmp_path / "photos", *[f"{index:03d}.png" for index in range(60)])
    project = project_of(tmp_path)
    project.stage("prepare")
    alone = data(project)
    command = ["python", "-m", "stages.prepare"]
    env = project.environment(SALMASK_RUNS=str(tmp_path / "runs"))
    processes = [subprocess.Popen(command, cwd=project.folder, env=env) for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert data(project) == alone


def test_the_demo_has_no_cache(tmp_path: Path) -> None:
    project = Project(tmp_path / "project", TINY)
    project.stage("prepare")
    assert not list((project.folder / "runs").glob("prepare-*"))
    assert json.loads(data(project)["dataset.json"])["notes"] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_side": -1}, "params.yaml, line 5: data.min_side: "),
        ({"val_shar": 0.1}, "val_shar: no such key"),
        ({"min_side": 100}, "no usable image under"),
    ],
)
def test_wrong_options_of_data_are_errors(tmp_path: Path, options: dict, message: str) -> None:
    draw(tmp_path / "photos", "1.png")
    output = project_of(tmp_path, **options).stage("prepare", code=2)
    assert message in output and "Traceback" not in output


def test_a_training_whose_images_disappear_stops_and_resumes(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    draw(photos, *[f"{index:02d}.png" for index in range(96)])
    project = project_of(tmp_path)
    (project.folder / "calm.yaml").write_text("cpus: 1\n")
    (project.folder / "often.yaml").write_text("cpus: 1\ncheckpoint_minutes: 0.0001\n")
    for stage in ("prepare", "localizer", "saliency"):
        project.stage(stage)
    run = ("pretrain", "--run", "plain")
    project.stage(*run, SALMASK_CLUSTER="calm.yaml", SALMASK_RUNS=str(tmp_path / "calm"))
    out = project.folder / "artifacts/pretrain/plain"
    calm = tree_digest(out)

    env = {"SALMASK_CLUSTER": "often.yaml"}
    env["SALMASK_RUNS"] = str(tmp_path / "runs")
    process = subprocess.Popen(
        [sys.executable, "-m", "stages.pretrain", "--run", "plain"],
        cwd=project.folder,
        env=project.environment(**env),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while not checkpoints(tmp_path / "runs"):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    photos.rename(tmp_path / "unmounted")
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 143, output
    last = output.strip().splitlines()[-1]
    assert last == (
        f"stopped: the images' folder {photos} does not exist: mount it; run the same "
        "command again to continue"
    )
    assert "Traceback" not in output and "gray image" not in output
    newest = checkpoints(tmp_path / "runs")[-1]
    assert 1 <= int(newest.removeprefix("step-").removesuffix(".pt")) < 45

    (tmp_path / "unmounted").rename(photos)
    project.stage(*run, **env)
    assert tree_digest(out) == calm


def test_the_step_at_which_the_images_disappeared_is_saved(
    make_manifest: Callable[..., Manifest],
    tmp_path: Path,
    job: Job,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dice = np.random.default_rng(0)
    make_manifest([(dice.integers(0, 256, (32, 32, 3), np.uint8), 0, "train") for _ in range(20)])
    config = RunConfig(
        name="plain",
        encoder=EncoderConfig(arch="resnet10", width=8, stem="small2"),
        view=ViewConfig(size=16, grid=4),
        mask=Choice("none", {}),
        framework=Choice("moco", {"dim": 8, "hidden": 8, "queue": 8, "bn_group": 4}),
        train=TrainConfig(epochs=3, warmup_epochs=1, batch=4, precision="float32"),
    )
    inputs = loop.Inputs(tmp_path / "data", tmp_path / "none")
    job.work.mkdir()
    job.out.mkdir()
    calm = loop.pretrain(config, inputs, job)
    for path in job.work.iterdir():
        path.unlink()

    whole = loop.training_views

    def unplugged(*args: Any, **options: Any) -> Iterator[Crops]:
        yield from islice(whole(*args, **options), 7)  # of 5 steps an epoch
        raise DataGoneError("the disk is gone")

    monkeypatch.setattr(loop, "training_views", unplugged)
    with pytest.raises(DataGoneError, match="the disk is gone"):
        loop.pretrain(config, inputs, job)
    assert checkpoint.saved(job.work)[0].name == "step-000000007.pt"
    monkeypatch.setattr(loop, "training_views", whole)
    assert loop.pretrain(config, inputs, job) == calm


def checkpoints(runs: Path) -> list[str]:
    return sorted(path.name for path in runs.glob("pretrain-*/*/step-*.pt"))
