"""`salmask fetch` with torchvision's own code, on archives made here as the real ones are."""

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
from salmask.datasets import download as fetch
from salmask.datasets.layout import KNOWN
from salmask.datasets.registry import SOURCES, configured
from salmask.errors import UserError
from salmask.params.values import Choice
from tests.datasets.test_archives import cifar10, cifar100, stl10

UTILS = "torchvision.datasets.utils"
KINDS = sorted(Imagenette._WNID_TO_CLASS)


def picture() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (9, 9)).save(stream, "JPEG")
    return stream.getvalue()


def packed(folder: Path) -> bytes:
    """What lies in a folder, as .tar.gz."""
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
    """The files that a download gets, by their names in the world."""
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
    """What can be downloaded: {name: bytes}. Every md5 is right but of what ends in "half"."""
    served: dict[str, bytes] = {}

    def get(url: str, to: str) -> None:
        found = served.get(url.rpartition("/")[2])
        if found is None:
            raise urllib.error.URLError("no route to host")
        Path(to).write_bytes(found)

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


def source_of(name: str) -> str:
    return next(source for source, about in KNOWN.items() if name in about.fetch)


@pytest.mark.parametrize("name", fetch.DOWNLOADS)
def test_what_is_fetched_is_what_the_source_reads(tmp_path, world, name):
    world |= archives(name, tmp_path)
    folder = tmp_path / "got"
    source, options = source_of(name), {}
    if source == "voc":
        options["years"] = [int(name[3:])]
    told = f"{folder} holds {name} now: name: {source}, root: {folder}"
    assert fetch.fetch(name, folder).startswith(told)
    assert sorted({path.split("/")[0] for path in files(folder)}) == sorted(
        {path.split("/")[0] for path in fetch.DOWNLOADS[name].makes}
    )
    assert not [path for path in files(folder) if path.endswith((".tgz", ".zip", ".gz", ".tar"))]
    if name == "inat2018":  # torchvision's archive has no annotations
        with pytest.raises(UserError, match=r"train2018\.json cannot be read"):
            configured(Choice(source, {"root": str(folder)}), "data")[1](tmp_path / "out", 0)
        return
    found = configured(Choice(source, {"root": str(folder)} | options), "data")[1]
    listing = found(tmp_path / "out", 0)
    assert listing.files and all((listing.root / f.path).is_file() for f in listing.files)


def test_a_second_time_nothing_is_fetched(tmp_path, world):
    world |= archives("voc2012", tmp_path)
    fetch.fetch("voc2012", tmp_path / "got")
    before = files(tmp_path / "got")
    world.clear()
    assert "holds voc2012 already: " in fetch.fetch("voc2012", tmp_path / "got")
    assert files(tmp_path / "got") == before


def test_the_years_of_voc_lie_side_by_side(tmp_path, world):
    for name in ("voc2007", "voc2012"):
        world |= archives(name, tmp_path)
        fetch.fetch(name, tmp_path / "got")
    found = configured(Choice("voc", {"root": str(tmp_path / "got")}), "data")[1](tmp_path, 0)
    assert [file.split for file in found.files] == ["train", "val", "train"]


@pytest.mark.parametrize(
    ("name", "broken", "told"),
    [
        (
            "imagenette",
            {"imagenette2.tgz": b"a half"},
            r"last file being imagenette2\.tgz: .*corru",
        ),
        ("imagenette", {"imagenette2.tgz": None}, r"imagenette could not be fetched: .*no route"),
        ("imagenette", {"imagenette2.tgz": b"no archive"}, r"imagenette2\.tgz: not a gzip file"),
        ("voc2007", {"VOCtest_06-Nov-2007.tar": b"half"}, r"file being VOCtest_06-Nov-2007\.tar"),
        ("flowers102", {"setid.mat": None}, "no route"),
        ("caltech101", {"caltech-101.zip": b"nonsense"}, r"caltech-101\.zip: File is not a zip"),
    ],
)
def test_a_download_that_fails_says_what_and_leaves_nothing(tmp_path, world, name, broken, told):
    good = archives(name, tmp_path)
    world |= {file: data for file, data in (good | broken).items() if data is not None}
    folder = tmp_path / "got"
    with pytest.raises(UserError, match=told):
        fetch.fetch(name, folder)
    assert list(folder.iterdir()) == []
    world |= good
    assert "now" in fetch.fetch(name, folder)  # the next one does not trip over it


def test_an_archive_that_ends_early_leaves_nothing_that_looks_whole(tmp_path, world):
    good = archives("imagenette", tmp_path)["imagenette2.tgz"]
    world["imagenette2.tgz"] = good[: len(good) // 2]
    with pytest.raises(UserError, match=r"imagenette could not be fetched, the last file being"):
        fetch.fetch("imagenette", tmp_path / "got")
    assert files(tmp_path) == [f for f in files(tmp_path) if f.startswith("packing/")]


def test_one_that_is_interrupted_leaves_nothing(tmp_path, world, monkeypatch):
    def get(url: str, to: str) -> None:
        Path(to).write_bytes(b"the first bytes")
        raise KeyboardInterrupt

    monkeypatch.setattr(f"{UTILS}._urlretrieve", get)
    with pytest.raises(KeyboardInterrupt):
        fetch.fetch("cifar10", tmp_path / "got")
    assert list((tmp_path / "got").iterdir()) == []


def test_what_a_killed_one_left_is_no_obstacle(tmp_path, world):
    world |= archives("imagenette", tmp_path)
    left = tmp_path / "got/imagenette.partial/imagenette2/train"
    left.mkdir(parents=True)  # which torchvision alone would take for the whole
    assert "now" in fetch.fetch("imagenette", tmp_path / "got")
    assert not left.exists() and len(files(tmp_path / "got")) == 20


def test_a_half_that_somebody_else_put_there_is_not_touched(tmp_path, world):
    (tmp_path / "got/flowers-102/jpg").mkdir(parents=True)
    with pytest.raises(UserError, match=r"holds a part of flowers102, not flowers-102/imagelabels"):
        fetch.fetch("flowers102", tmp_path / "got")


def test_too_small_a_disk_is_told_before(tmp_path, world, monkeypatch):
    free(monkeypatch, 10**11)
    with pytest.raises(UserError, match=r"inat2018 takes about 240 GB .* has 100\.0 GB"):
        fetch.fetch("inat2018", tmp_path / "got")
    assert list((tmp_path / "got").iterdir()) == []


def test_what_is_no_folder_is_told(tmp_path, world):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cifar10 could not be placed in .*file"):
        fetch.fetch("cifar10", tmp_path / "file")


# ------------------------------------------------------------------------------------ the command


def call(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["fetch", *arguments])
    return result.exit_code, result.output


def test_without_a_name_everything_is_listed():
    code, said = call()
    assert code == 0
    for name, about in KNOWN.items():
        assert re.search(rf"^{name}: ", said, re.MULTILINE) and about.terms in said
    for name in fetch.DOWNLOADS:
        assert f"{name} (about " in said


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("imagenet", "there"), "`imagenet` cannot be fetched: imagenet wants: train/WNID"),
        (("tinyimagenet", "there"), "get tiny-imagenet-200.zip there and unpack it"),
        (("places205", "there"), "torchvision has only Places365, which is another set"),
        (("coco", "there"), "get train2017.zip"),
        (("mnist", "there"), "there is no such data set; there are: imagenette, "),
        (("cifar10",), "where to? salmask fetch cifar10 FOLDER"),
    ],
)
def test_what_cannot_be_fetched_is_said(arguments, told):
    code, said = call(*arguments)
    assert code == 2 and told in said and "Traceback" not in said


def test_the_command_fetches(tmp_path, world):
    world |= archives("imagenette-160", tmp_path)
    code, said = call("imagenette-160", str(tmp_path / "got"))
    assert code == 0 and said.splitlines()[-1].endswith(f"root: {tmp_path / 'got'}")


def test_tables_agree():
    assert set(KNOWN) <= set(SOURCES)
    named = [name for about in KNOWN.values() for name in about.fetch]
    assert sorted(named) == sorted(fetch.DOWNLOADS)
    assert all(about.fetch or about.rest for about in KNOWN.values())
