"""Files of ours that are damaged: one sentence with the command, and no other error."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from salmask import collapse
from salmask.data import location, manifest
from salmask.data.prepare import write_manifest
from salmask.datasets import ListedFile, Listing
from salmask.detection import prepared_files
from salmask.detection.objects import DetectionData
from salmask.encoders import on_disk as encoder_file
from salmask.errors import UserError
from salmask.files import file_digest, write_json
from salmask.lineage import trace
from salmask.report import detections, tables
from salmask.saliency import stored_localizer
from salmask.saliency.trunks import Localizer, build_layers
from salmask.stored_files import command_for, read_json, read_rows, read_tensors
from tests.helpers.drawn_scenes import drawn
from tests.helpers.tiny_encoders import SMALL, saved

CPU = torch.device("cpu")
Reader = Callable[[Path], Any]
# Path of a file in artifacts/ -> how it is read, given its folder.
READERS: dict[str, Reader] = {
    "data/dataset.json": manifest.load,
    "data/manifest.csv": manifest.load,
    "data/manifest.safetensors": manifest.load,
    "data/location.json": location.load,
    "pretrain/a/encoder.json": lambda folder: encoder_file.load(folder, CPU),
    "pretrain/a/encoder.safetensors": lambda folder: encoder_file.load(folder, CPU),
    "pretrain/a/projector.safetensors": lambda folder: encoder_file.load_projector(folder, CPU),
    "pretrain/a/history.csv": collapse.signs_of_run,
    "localizer/localizer.json": lambda folder: stored_localizer.load(folder, CPU),
    "localizer/weights.safetensors": lambda folder: stored_localizer.load(folder, CPU),
    "detect/scenes/dataset.json": prepared_files.load,
    "detect/scenes/pictures.jsonl": prepared_files.load,
    "evaluate/a/knn/metrics.json": lambda folder: tables.read_metrics(folder / "metrics.json"),
    "evaluate/a/knn/provenance.json": lambda folder: trace(folder / "metrics.json", folder),
    "evaluate/a/detect-x/classes.csv": lambda folder: detections.read(folder, "a", "x"),
}
# The files without which the reader reads something else, and says so.
REPLACED = {"data/manifest.safetensors", "evaluate/a/knn/provenance.json"}


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of each kind of file."""
    root = tmp_path_factory.mktemp("project") / "artifacts"
    write_images(root / "data")
    encoder = root / "pretrain" / "a"
    saved(encoder, SMALL)
    encoder_file.save_projector(torch.nn.Module(), encoder)
    (encoder / "history.csv").write_text("epoch,loss,rankme\n1,2.5,\n2,1.5,3.25\n")
    arch = {"encoder": {"arch": "resnet10", "width": 8, "stem": "small"}, "filter": None}
    layers = build_layers("salmask", arch)
    localizer = Localizer("encoder", "salmask", arch, (0.5,) * 3, (0.5,) * 3, 8, "0" * 64)
    stored_localizer.save(localizer, layers.state_dict(), root / "localizer")
    images = root / "detect" / "scenes"
    train, test = (drawn(images / name, 2, seed=i) for i, name in enumerate("ab"))
    prepared_files.save(DetectionData("scenes", train, test), images, images)
    write_json(root / "evaluate/a/knn/metrics.json", {"knn20_top1": 61.25, "knn200_top1": 60.5})
    record = {"stage": "knn", "name": "a", "modules": [], "code": "0", "params": {}, "inputs": {}}
    write_json(root / "evaluate/a/knn/provenance.json", record | {"outputs": {}})
    table = root / "evaluate/a/detect-x"
    table.mkdir()
    (table / "detections.png").write_bytes(b"png")
    (table / "classes.csv").write_text("kind,class,objects,ap\nbox,cat,3,12.5\nbox,dog,0,\n")
    return root


def write_images(folder: Path) -> None:
    """Four images and their manifest."""
    names = [f"{i}.png" for i in range(4)]
    (folder / "images").mkdir(parents=True)
    for i, name in enumerate(names):
        Image.fromarray(np.full((9, 9, 3), i, np.uint8)).save(folder / "images" / name)
    files = [ListedFile(name, i % 2, "train") for i, name in enumerate(names)]
    write_manifest(Listing(folder / "images", ("x", "y"), files), "x", folder, 0.1)


def damaged(content: bytes, seed: int) -> bytes:
    """The bytes of a file after one of several kinds of damage."""
    rng = np.random.default_rng(seed)
    data = bytearray(content)
    start, stop = sorted(rng.integers(0, len(data) + 1, 2).tolist())
    match seed % 8:
        case 0:
            data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        case 1:
            del data[start:]
        case 2:
            del data[start:stop]
        case 3:
            data[start:stop] = bytes(stop - start)
        case 4:
            data[start:start] = rng.bytes(int(rng.integers(1, 40)))
        case 5:
            data = bytearray(
                [b"", b"null", b"[]", b"{}", b"5", b"[" * 20_000, b"\n\n", b"a,b\n1"][start % 8]
            )
        case 6:
            data[start:stop] = rng.permutation(np.frombuffer(data[start:stop], np.uint8)).tobytes()
        case _:
            data[start:start] = data[start:stop]
    return bytes(data)


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("name", READERS)
def test_damage_is_one_sentence(
    artifacts: Path, tmp_path_factory: pytest.TempPathFactory, name: str, recorded: bool
) -> None:
    """With a record of the digests, every changed byte is noticed."""
    root = tmp_path_factory.mktemp("damaged") / "artifacts"
    shutil.copytree(artifacts, root)
    file = root / name
    content = file.read_bytes()
    if recorded and name not in REPLACED:
        write_json(file.parent / "provenance.json", {"outputs": {file.name: file_digest(file)}})
    READERS[name](file.parent)

    @given(st.integers(0, 10_000))
    def read(seed: int) -> None:
        file.write_bytes(damaged(content, seed))
        try:
            READERS[name](file.parent)
        except UserError as error:
            text = str(error)
            assert "\n" not in text or "does not fit" in text
            assert str(file.parent) in text or "images' folder" in text
        else:
            assert not recorded or name in REPLACED or file.read_bytes() == content

    read()


@pytest.mark.parametrize(
    ("path", "command"),
    [
        ("data/manifest.csv", "prepare"),
        ("localizer/localizer.json", "localizer"),
        ("pretrain/a/encoder.json", "pretrain@a"),
        ("transfer/shapes/dataset.json", "transfer_data@shapes"),
        ("detect/scenes/dataset.json", "detect_data@scenes"),
        ("evaluate/a/knn/metrics.json", "evaluate@a-knn"),
        ("evaluate/a/linear/metrics.json", "linear@a"),
        ("evaluate/a/transfer-shapes/metrics.json", "transfer@a-shapes"),
        ("evaluate/a/variance-b/metrics.json", "variance-through@a-b"),
        ("evaluate/a/variance/metrics.json", "variance@a"),
        ("report/results.json", "report"),
    ],
)
def test_the_command_that_makes_a_file_again(tmp_path: Path, path: str, command: str) -> None:
    file = tmp_path / "artifacts" / path
    assert command_for(file) == f"dvc repro --force {command}"
    file.parent.mkdir(parents=True)
    file.write_text("{")
    with pytest.raises(
        UserError, match=rf"is damaged \(.*\): run `dvc repro --force {command}` to"
    ):
        read_json(file)


def test_an_imported_encoder_is_imported_again(tmp_path: Path) -> None:
    folder = tmp_path / "artifacts" / "pretrain" / "theirs"
    write_json(folder / "provenance.json", {"stage": "imported", "outputs": {}})
    assert command_for(folder / "encoder.json") == "dvc repro --force imported@theirs"
    assert command_for(tmp_path / "elsewhere" / "encoder.json") == ""


def test_a_file_that_differs_from_the_record_is_refused(tmp_path: Path) -> None:
    """Even if it can be read."""
    write_json(tmp_path / "a.json", {"mean": 0.5})
    write_json(
        tmp_path / "provenance.json", {"outputs": {"a.json": file_digest(tmp_path / "a.json")}}
    )
    assert read_json(tmp_path / "a.json") == {"mean": 0.5}
    write_json(tmp_path / "a.json", {"mean": 0.4})
    with pytest.raises(UserError, match=r"its sha256 is not the one in provenance\.json"):
        read_json(tmp_path / "a.json")


def test_rows_and_tensors_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('a,b\n1,"x,y"\n2,\n')
    assert read_rows(tmp_path / "a.csv") == [{"a": "1", "b": "x,y"}, {"a": "2", "b": ""}]
    with pytest.raises(FileNotFoundError):
        read_tensors(tmp_path / "b.safetensors")
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        read_json(tmp_path)


def test_json_that_is_nested_too_deeply_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="nested too deeply"):
        read_json(tmp_path / "a.json")
