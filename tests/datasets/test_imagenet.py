"""ImageNet and its relatives in their real layouts, a few images each."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets import imagenet as theirs

from salmask.datasets import imagenet
from salmask.errors import UserError
from tests.helpers.trees import by_split, images, listing, texts

CAT, DOG = "n00000001", "n00000002"
HUNDRED = json.loads((Path(imagenet.__file__).parent / "imagenet100.json").read_text())


def test_imagenet_as_everybody_sorts_it(tmp_path):
    root = tmp_path / "root"
    images(root, f"train/{DOG}/{DOG}_9.JPEG", f"train/{CAT}/{CAT}_1.JPEG", f"train/{CAT}/x.JPEG")
    images(root, f"val/{CAT}/ILSVRC2012_val_00000002.JPEG", f"val/{DOG}/a.JPEG", "val/other/b.JPEG")
    found = listing(tmp_path, "imagenet", classes=2)
    assert found.classes == (CAT, DOG)
    assert by_split(found) == {
        "train": [
            (f"train/{CAT}/{CAT}_1.JPEG", CAT),
            (f"train/{CAT}/x.JPEG", CAT),
            (f"train/{DOG}/{DOG}_9.JPEG", DOG),
        ],
        "val": [(f"val/{CAT}/ILSVRC2012_val_00000002.JPEG", CAT), (f"val/{DOG}/a.JPEG", DOG)],
    }
    assert found.root == root


FLAT = [f"val/ILSVRC2012_val_{n:08d}.JPEG" for n in (1, 2, 3)]


@pytest.fixture
def flat(tmp_path):
    root = tmp_path / "root"
    images(root, f"train/{CAT}/1.JPEG", f"train/{DOG}/2.JPEG", *FLAT)
    return root


def devkit(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The archive as its authors gave it: ids from 1 on, of words in a tree; two are leaves."""
    savemat = pytest.importorskip("scipy.io").savemat
    data = root / "unpacked/ILSVRC2012_devkit_t12/data"
    data.mkdir(parents=True)
    names = ["ILSVRC2012_ID", "WNID", "words", "gloss", "num_children"]
    words = [(1, DOG, "dog, hound", "x", 0), (2, CAT, "cat", "x", 0), (3, "n9", "animal", "x", 2)]
    synsets = np.array(words, dtype=[(name, object) for name in names])
    savemat(data / "meta.mat", {"synsets": synsets})
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n2\n1\n")
    file = root / "ILSVRC2012_devkit_t12.tar.gz"
    with tarfile.open(file, "w:gz") as archive:
        archive.add(root / "unpacked/ILSVRC2012_devkit_t12", "ILSVRC2012_devkit_t12")
    md5 = theirs.check_integrity.__globals__["calculate_md5"](file)
    monkeypatch.setitem(theirs.ARCHIVE_META, "devkit", (file.name, md5))


def meta(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(({DOG: ("dog",), CAT: ("cat",)}, [DOG, CAT, DOG]), root / "meta.bin")


def kaggle(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {3: f"{DOG} 1 2 3 4 {DOG} 5 6 7 8", 1: f"{DOG} 1 2 3 4", 2: f"{CAT} 9 9 9 9"}
    lines = [f"ILSVRC2012_val_{n:08d},{row} " for n, row in rows.items()]
    texts(root, LOC_val_solution__csv="\n".join(["ImageId,PredictionString", *lines, ""]))


@pytest.mark.parametrize("told", [devkit, meta, kaggle])
def test_a_flat_validation_folder_has_the_classes_of_a_file(flat, tmp_path, monkeypatch, told):
    told(flat, monkeypatch)
    before = sorted(path.name for path in flat.iterdir())
    found = listing(tmp_path, "imagenet", classes=2)
    assert by_split(found)["val"] == list(zip(FLAT, (DOG, CAT, DOG), strict=True))
    assert sorted(path.name for path in flat.iterdir()) == before  # nothing is written there


def test_a_flat_validation_folder_alone_says_what_is_missing(flat, tmp_path):
    with pytest.raises(UserError, match=r"val holds images.* none of ILSVRC2012_devkit_t12.*gz"):
        listing(tmp_path, "imagenet", classes=2)
    (flat / "meta.bin").write_bytes(b"nonsense")
    with pytest.raises(UserError, match=r"meta\.bin or .* is not what torchvision wrote"):
        listing(tmp_path, "imagenet", classes=2)
    (flat / "meta.bin").unlink()
    (flat / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(b"nonsense")
    pytest.importorskip("scipy")
    with pytest.raises(UserError, match=r"ILSVRC2012_devkit_t12\.tar\.gz of .* is not what"):
        listing(tmp_path, "imagenet", classes=2)


@pytest.mark.parametrize("told", [meta, kaggle])
def test_a_flat_folder_with_another_number_of_images_is_told(flat, tmp_path, monkeypatch, told):
    told(flat, monkeypatch)
    images(flat, "val/ILSVRC2012_val_00000004.JPEG")
    with pytest.raises(UserError, match="val holds 4 images directly, and the classes of 3 are"):
        listing(tmp_path, "imagenet", classes=2)


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ((), r"no folder .*root/train\. imagenet wants: train/WNID.*ImageNet's own site"),
        ((f"train/{CAT}/1.JPEG",), "holds 1 folders named by WordNet ids, as n01440764, not 2"),
        (("train/cat/1.JPEG", "train/dog/1.JPEG"), "holds 0 folders named by"),
        ((f"train/{CAT}/1.JPEG", f"train/{DOG}/2.JPEG"), r"no folder .*root/val\. "),
        (
            (f"train/{CAT}/1.JPEG", f"train/{DOG}/2.JPEG", f"val/{DOG}/3.JPEG"),
            f"val lacks 1 of 2 class folders: {CAT}",
        ),
    ],
)
def test_another_layout_of_imagenet_is_told(tmp_path, names, told):
    (tmp_path / "root").mkdir()
    images(tmp_path / "root", *names)
    with pytest.raises(UserError, match=told):
        listing(tmp_path, "imagenet", classes=2)


def test_the_archives_of_classes_are_to_be_unpacked(tmp_path):
    texts(tmp_path / "root/train", n01440764__tar="")
    with pytest.raises(UserError, match=r"holds 0 folders .* not 1000, but \.tar files: unpack"):
        listing(tmp_path, "imagenet")


# --------------------------------------------------------------------------------- its relatives


def test_the_hundred_classes() -> None:
    assert len(set(HUNDRED)) == 100 and sorted(HUNDRED) == HUNDRED
    assert HUNDRED[0] == "n01558993" and all(imagenet._WNID.fullmatch(wnid) for wnid in HUNDRED)


def test_imagenet100_reads_its_classes_of_imagenet_where_they_are(tmp_path):
    root = tmp_path / "root"
    for split in ("train", "val"):
        for wnid in [*HUNDRED, CAT]:
            (root / split / wnid).mkdir(parents=True)
    images(root, f"train/{HUNDRED[7]}/1.JPEG", f"val/{HUNDRED[3]}/2.JPEG", f"train/{CAT}/3.JPEG")
    found = listing(tmp_path, "imagenet100")
    assert found.classes == tuple(HUNDRED) and found.root == root
    assert by_split(found) == {
        "train": [(f"train/{HUNDRED[7]}/1.JPEG", HUNDRED[7])],
        "val": [(f"val/{HUNDRED[3]}/2.JPEG", HUNDRED[3])],
    }
    (root / "train" / HUNDRED[3]).rmdir()
    with pytest.raises(UserError, match=f"train lacks 1 of 100 class folders: {HUNDRED[3]}.*100 w"):
        listing(tmp_path, "imagenet100")


def test_imagenet100_of_a_flat_validation_folder(tmp_path, monkeypatch):
    root = tmp_path / "root"
    images(root, *(f"train/{wnid}/1.JPEG" for wnid in HUNDRED), *FLAT[:2])
    torch.save(({}, [CAT, HUNDRED[2]]), root / "meta.bin")
    assert by_split(listing(tmp_path, "imagenet100"))["val"] == [(FLAT[1], HUNDRED[2])]


@pytest.mark.parametrize("place", [".", "imagenette2-160"])
def test_imagenette(tmp_path, place):
    root = tmp_path / "root" / place
    kinds = [f"n0000000{n}" for n in range(10)]
    images(root, *(f"{s}/{k}/{s}.JPEG" for s in ("train", "val") for k in kinds))
    texts(root, noisy_imagenette__csv="path,noisy_labels_0\n")
    found = listing(tmp_path, "imagenette")
    assert found.classes == tuple(kinds) and found.root == root.resolve()
    assert by_split(found)["val"] == [(f"val/{kind}/val.JPEG", kind) for kind in kinds]


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (
            ("x/1.jpg",),
            r"no folder .*root/train\. imagenette wants.*`salmask fetch imagenette .*ro",
        ),
        (("train/a/1.jpg",), "train holds 1 folders of classes, not 10"),
        (
            ("imagenette2/train/a/1.jpg", "imagenette2-320/train/a/1.jpg"),
            "root holds imagenette2 and imagenette2-320: name one of them as root",
        ),
    ],
)
def test_another_layout_of_imagenette_is_told(tmp_path, names, told):
    images(tmp_path / "root", *names)
    with pytest.raises(UserError, match=told):
        listing(tmp_path, "imagenette")


def tiny(root: Path) -> None:
    """Tiny-ImageNet's layout with two classes."""
    images(root, f"train/{DOG}/images/{DOG}_0.JPEG", f"train/{CAT}/images/{CAT}_0.JPEG")
    images(root, "val/images/val_0.JPEG", "val/images/val_1.JPEG", "test/images/test_0.JPEG")
    (root / "wnids.txt").write_text(f"{DOG}\n{CAT}\n")
    (root / "train" / DOG / f"{DOG}_boxes.txt").write_text(f"{DOG}_0.JPEG\t0\t0\t62\t62\n")
    rows = f"val_0.JPEG\t{CAT}\t0\t32\t44\t62\nval_1.JPEG\t{DOG}\t52\t55\t57\t59\n"
    (root / "val/val_annotations.txt").write_text(rows)


@pytest.mark.parametrize("place", [".", "tiny-imagenet-200"])
def test_tinyimagenet(tmp_path, place):
    tiny(tmp_path / "root" / place)
    found = listing(tmp_path, "tinyimagenet")
    assert found.root == (tmp_path / "root" / place).resolve()
    assert by_split(found) == {
        "train": [
            (f"train/{CAT}/images/{CAT}_0.JPEG", CAT),
            (f"train/{DOG}/images/{DOG}_0.JPEG", DOG),
        ],
        "val": [("val/images/val_0.JPEG", CAT), ("val/images/val_1.JPEG", DOG)],
    }


@pytest.mark.parametrize(
    ("path", "text", "told"),
    [
        ("wnids.txt", None, r"wnids\.txt cannot be read: no such file.*tinyimagenet wants: wnids"),
        (f"train/{CAT}/images", None, f"no folder .*train/{CAT}/images"),
        ("val/images", None, r"no folder .*val/images\. tinyimagenet wants"),
        ("val/val_annotations.txt", None, "val_annotations.txt cannot be read: no such file"),
        ("val/val_annotations.txt", f"a.JPEG\t{CAT}\nb.JPEG {DOG}\n", "line 2: no file and class"),
        ("val/val_annotations.txt", "a.JPEG\tn00000003\t0\n", "line 1: no file and class of wnids"),
    ],
)
def test_another_layout_of_tinyimagenet_is_told(tmp_path, path, text, told):
    tiny(tmp_path / "root")
    if text is None:
        (tmp_path / "root" / path).rename(tmp_path / "elsewhere")
    else:
        (tmp_path / "root" / path).write_text(text)
    with pytest.raises(UserError, match=told):
        listing(tmp_path, "tinyimagenet")
