"""`salmask fetch` with torchvision's code, on small archives in the real layouts."""

import gzip
import io
import re
import shutil
import tarfile
import urllib.error
import zipfile
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from torchvision.datasets import Imagenette

from salmask.commands.cli import main
from salmask.datasets import DATASETS
from salmask.datasets.download import downloads, fetch
from salmask.datasets.reader import dataset_reader
from salmask.errors import UserError
from salmask.params.values import Choice
from tests.datasets.test_binary_archives import cifar10, cifar100, stl10

UTILS = "torchvision.datasets.utils"
KINDS = sorted(Imagenette._WNID_TO_CLASS)


def picture() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (9, 9)).save(stream, "JPEG")
    return stream.getvalue()


def packed(folder: Path) -> bytes:
    """The contents of a folder as .tar.gz."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for path in sorted(folder.iterdir()):
            archive.add(path, path.name)
    return stream.getvalue()


def tree(tmp: Path, *names: str) -> bytes:
    folder = tmp / "packing"
    shutil.rmtree(folder, ignore_errors=True)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture())
    return packed(folder)


def imagenette_archive(tmp: Path, name: str) -> bytes:
    names = [f"{name}/{part}/{k}/{k}.JPEG" for part in ("train", "val") for k in KINDS]
    return tree(tmp, *names)


def caltech_archive(tmp: Path) -> bytes:
    names = [f"101_ObjectCategories/{k}/image_{n:04d}.jpg" for k in ("ant", "bass")
             for n in range(1, 32)]  # fmt: skip
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        inner = tree(tmp, *names, "101_ObjectCategories/BACKGROUND_Google/image_0001.jpg")
        archive.writestr("caltech-101/101_ObjectCategories.tar.gz", inner)
        archive.writestr("caltech-101/Annotations.tar", b"")
    return stream.getvalue()


def mat(**values: object) -> bytes:
    stream = io.BytesIO()
    pytest.importorskip("scipy.io").savemat(stream, values)
    return stream.getvalue()


def voc_archive(tmp: Path, year: int, part: str, name: str) -> bytes:
    top = f"VOCdevkit/VOC{year}"
    tree(tmp, f"{top}/JPEGImages/{name}.jpg")
    listed = tmp / "packing" / top / "ImageSets/Main" / f"{part}.txt"
    listed.parent.mkdir(parents=True)
    listed.write_text(f"{name}\n")
    return gzip.decompress(packed(tmp / "packing"))


def archives(name: str, tmp: Path) -> dict[str, bytes]:
    """The archives of a download, by their names."""
    make = {"cifar10": cifar10, "cifar100": cifar100, "stl10": stl10}
    if name in make:
        make[name](tmp / "packing")
        file = {"cifar10": "cifar-10-python", "cifar100": "cifar-100-python"}
        return {f"{file.get(name, 'stl10_binary')}.tar.gz": packed(tmp / "packing")}
    if name.startswith("imagenette"):
        top = name.replace("imagenette", "imagenette2")
        return {f"{top}.tgz": imagenette_archive(tmp, top)}
    return {
        "caltech101": lambda: {"caltech-101.zip": caltech_archive(tmp)},
        "flowers102": lambda: {
            "102flowers.tgz": tree(tmp, *(f"jpg/image_{n:05d}.jpg" for n in range(1, 7))),
            "imagelabels.mat": mat(labels=np.array([[2, 1, 2, 1, 2, 1]])),
            "setid.mat": mat(trnid=[[1, 2]], valid=[[3, 4]], tstid=[[5, 6]]),
        },
        "inat2018": lambda: {"train_val2018.tar.gz": tree(tmp, "train_val2018/Aves/0/a.jpg")},
        "voc2007": lambda: {
            "VOCtrainval_06-Nov-2007.tar": voc_archive(tmp, 2007, "trainval", "000005"),
            "VOCtest_06-Nov-2007.tar": voc_archive(tmp, 2007, "test", "000001"),
        },
        "voc2012": lambda: {
            "VOCtrainval_11-May-2012.tar": voc_archive(tmp, 2012, "trainval", "2008_000002")
        },
    }[name]()


@pytest.fixture
def world(monkeypatch):
    """The archives that can be downloaded: name -> bytes. Those that end in "half" fail the md5."""
    served: dict[str, bytes] = {}

    def get(url: str, to: str) -> None:
        content = served.get(url.rpartition("/")[2])
        if content is None:
            raise urllib.error.URLError("no route to host")
        Path(to).write_bytes(content)

    def right(path: str, md5: str) -> bool:
        return not Path(path).read_bytes().endswith(b"half")

    monkeypatch.setattr(f"{UTILS}._get_redirect_url", lambda url, max_hops: url)
    monkeypatch.setattr(f"{UTILS}._urlretrieve", get)
    monkeypatch.setattr(f"{UTILS}.check_md5", right)
    free(monkeypatch, 10**12)
    return served


def free(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    usage = shutil.disk_usage("/")._replace(free=count)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)


def files(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize("name", downloads())
def test_every_download_can_be_read_as_its_data_set(tmp_path, world, name):
    world |= archives(name, tmp_path)
    folder = tmp_path / "got"
    dataset_name, dataset = downloads()[name]
    options = {"years": [int(name[3:])]} if dataset_name == "voc" else {}
    message = f"{folder} now contains {name}: use name: {dataset_name}, root: {folder}"
    assert fetch(name, folder).startswith(message)
    assert sorted({path.split("/")[0] for path in files(folder)}) == sorted(
        {path.split("/")[0] for path in dataset.downloads[name].files}
    )
    assert not [path for path in files(folder) if path.endswith((".tgz", ".zip", ".gz", ".tar"))]
    _, read = dataset_reader(Choice(dataset_name, {"root": str(folder)} | options), "data")
    if name == "inat2018":  # torchvision's archive has no annotations
        with pytest.raises(UserError, match=r"train2018\.json cannot be read"):
            read(tmp_path / "out", 0)
        return
    listing = read(tmp_path / "out", 0)
    assert listing.files and all((listing.root / f.path).is_file() for f in listing.files)


def test_a_complete_data_set_is_not_downloaded_again(tmp_path, world):
    world |= archives("voc2012", tmp_path)
    fetch("voc2012", tmp_path / "got")
    before = files(tmp_path / "got")
    world.clear()
    assert "already contains voc2012: " in fetch("voc2012", tmp_path / "got")
    assert files(tmp_path / "got") == before


def test_the_years_of_voc_lie_side_by_side(tmp_path, world):
    for name in ("voc2007", "voc2012"):
        world |= archives(name, tmp_path)
        fetch(name, tmp_path / "got")
    _, read = dataset_reader(Choice("voc", {"root": str(tmp_path / "got")}), "data")
    assert [file.split for file in read(tmp_path, 0).files] == ["train", "val", "train"]


@pytest.mark.parametrize(
    ("name", "broken", "message"),
    [
        ("imagenette", {"imagenette2.tgz": b"a half"}, r"last file: imagenette2\.tgz\): .*corru"),
        ("imagenette", {"imagenette2.tgz": None}, r"download of imagenette failed: .*no route"),
        ("imagenette", {"imagenette2.tgz": b"no archive"}, r"imagenette2\.tgz\): not a gzip file"),
        ("voc2007", {"VOCtest_06-Nov-2007.tar": b"half"}, r"file: VOCtest_06-Nov-2007\.tar"),
        ("flowers102", {"setid.mat": None}, "no route"),
        ("caltech101", {"caltech-101.zip": b"nonsense"}, r"caltech-101\.zip\): File is not a zip"),
    ],
)
def test_a_failed_download_leaves_no_files(tmp_path, world, name, broken, message):
    good = archives(name, tmp_path)
    world |= {file: data for file, data in (good | broken).items() if data is not None}
    folder = tmp_path / "got"
    with pytest.raises(UserError, match=message):
        fetch(name, folder)
    assert list(folder.iterdir()) == []
    world |= good
    assert "now" in fetch(name, folder)  # the next download succeeds


def test_a_truncated_archive_leaves_no_files(tmp_path, world):
    good = archives("imagenette", tmp_path)["imagenette2.tgz"]
    world["imagenette2.tgz"] = good[: len(good) // 2]
    with pytest.raises(UserError, match=r"download of imagenette failed \(last file: "):
        fetch("imagenette", tmp_path / "got")
    assert files(tmp_path) == [f for f in files(tmp_path) if f.startswith("packing/")]


def test_an_interrupted_download_leaves_no_files(tmp_path, world, monkeypatch):
    def get(url: str, to: str) -> None:
        Path(to).write_bytes(b"the first bytes")
        raise KeyboardInterrupt

    monkeypatch.setattr(f"{UTILS}._urlretrieve", get)
    with pytest.raises(KeyboardInterrupt):
        fetch("cifar10", tmp_path / "got")
    assert list((tmp_path / "got").iterdir()) == []


def test_the_leftover_of_a_killed_download_is_removed(tmp_path, world):
    world |= archives("imagenette", tmp_path)
    left = tmp_path / "got/imagenette.partial/imagenette2/train"
    left.mkdir(parents=True)  # torchvision alone would accept it as complete
    assert "now" in fetch("imagenette", tmp_path / "got")
    assert not left.exists() and len(files(tmp_path / "got")) == 20


def test_an_incomplete_data_set_is_not_touched(tmp_path, world):
    (tmp_path / "got/flowers-102/jpg").mkdir(parents=True)
    with pytest.raises(UserError, match=r"a part of flowers102, without flowers-102/imagelabels"):
        fetch("flowers102", tmp_path / "got")


def test_too_little_disk_space_is_an_error(tmp_path, world, monkeypatch):
    free(monkeypatch, 10**11)
    with pytest.raises(UserError, match=r"inat2018 needs about 240 GB .* has 100\.0 GB"):
        fetch("inat2018", tmp_path / "got")
    assert list((tmp_path / "got").iterdir()) == []


def test_a_file_in_place_of_the_folder_is_an_error(tmp_path, world):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cifar10 cannot be written to .*file"):
        fetch("cifar10", tmp_path / "file")


# ------------------------------------------------------------------------------------ the command


def call(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["fetch", *arguments])
    return result.exit_code, result.output


def test_without_a_name_all_data_sets_are_listed():
    code, output = call()
    assert code == 0
    for name, dataset in DATASETS.items():
        if dataset.layout:
            assert re.search(rf"^{name}: ", output, re.MULTILINE) and dataset.terms in output
    for name in downloads():
        assert f"{name} (about " in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("imagenet", "there"), "`imagenet` cannot be downloaded: Expected for imagenet: train/WN"),
        (("tinyimagenet", "there"), "download tiny-imagenet-200.zip there and unpack it"),
        (("places205", "there"), "torchvision only has Places365, a different data set"),
        (("coco", "there"), "download train2017.zip"),
        (("mnist", "there"), "there is no such data set; there are: caltech101, "),
        (("cifar10",), "the folder is missing: salmask fetch cifar10"),
    ],
)
def test_other_names_are_errors(arguments, message):
    code, output = call(*arguments)
    assert code == 2 and message in output and "Traceback" not in output


def test_the_command_downloads(tmp_path, world):
    world |= archives("imagenette-160", tmp_path)
    code, output = call("imagenette-160", str(tmp_path / "got"))
    assert code == 0 and output.splitlines()[-1].endswith(f"root: {tmp_path / 'got'}")


def test_every_data_set_of_known_layout_names_its_source():
    for dataset in DATASETS.values():
        assert not dataset.layout or (dataset.origin and dataset.terms)
        assert not dataset.layout or dataset.downloads or dataset.note
