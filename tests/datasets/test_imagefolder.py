"""Folders of images in every layout, and folders with broken entries."""

import os
import subprocess
import sys

import pytest
from PIL import Image

from salmask.data import manifest
from salmask.data.prepare import write_manifest
from salmask.datasets import imagefolder
from salmask.errors import UserError


def _folder(root, *names: str):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".txt":
            path.write_text("no image")
        else:
            Image.new("RGB", (4, 3)).save(path)
    return root


def _listed(root, seed: int = 0, **options) -> dict[str, tuple[int, str]]:
    listing = imagefolder.read(root, seed, root=root, **options)
    assert listing.root == root.resolve()
    return {f.path: (f.label, f.split) for f in listing.files}


# ------------------------------------------------------------------------------------- layouts


@pytest.mark.parametrize("validation", ["val", "valid", "validation", "test"])
def test_a_train_and_a_validation_folder(tmp_path, validation):
    root = _folder(
        tmp_path,
        "train/cat/1.jpg",
        "train/dog/deep/2.PNG",
        "train/dog/notes.txt",
        f"{validation}/dog/3.png",
        f"{validation}/cat/4.webp",
    )
    assert _listed(root) == {
        "train/cat/1.jpg": (0, "train"),
        "train/dog/deep/2.PNG": (1, "train"),
        f"{validation}/cat/4.webp": (0, "val"),
        f"{validation}/dog/3.png": (1, "val"),
    }
    assert imagefolder.read(root, 0, root=root).classes == ("cat", "dog")


def test_class_folders_are_split_by_share(tmp_path):
    names = [f"{kind}/{i:03d}.png" for kind in ("cat", "dog") for i in range(60)]
    listing = _listed(_folder(tmp_path, *names), val_share=0.25)
    assert len(listing) == 120
    assert {name: label for name, (label, _) in listing.items()} == {
        name: int(name.startswith("dog")) for name in names
    }
    held = sum(split == "val" for _, split in listing.values())
    assert 15 < held < 45  # 30 expected, deviation 4.7


def test_a_train_folder_alone_is_split_too(tmp_path):
    listing = _listed(_folder(tmp_path, *[f"train/cat/{i}.png" for i in range(40)]), val_share=0.5)
    assert {split for _, split in listing.values()} == {"train", "val"}
    assert {label for label, _ in listing.values()} == {0}


def test_images_without_class_folders_have_no_label_and_all_train(tmp_path):
    listing = _listed(_folder(tmp_path, *[f"{i}.png" for i in range(20)]), val_share=0.5)
    assert set(listing.values()) == {(-1, "train")}
    assert imagefolder.read(tmp_path, 0, root=tmp_path).classes == ()


def test_adding_images_moves_no_other_image(tmp_path):
    before = _listed(_folder(tmp_path, *[f"cat/{i}.png" for i in range(40)]), val_share=0.3)
    after = _listed(
        _folder(tmp_path, *[f"cat/{i}b.png" for i in range(40)], "ant/1.png"), val_share=0.3
    )
    assert {name: split for name, (_, split) in before.items()} == {
        name: after[name][1] for name in before
    }


def test_the_split_depends_on_the_seed(tmp_path):
    _folder(tmp_path, *[f"cat/{i}.png" for i in range(40)])
    assert _listed(tmp_path, 1, val_share=0.5) == _listed(tmp_path, 1, val_share=0.5)
    assert _listed(tmp_path, 1, val_share=0.5) != _listed(tmp_path, 2, val_share=0.5)


@pytest.mark.parametrize(("share", "splits"), [(0.0, {"train"}), (1.0, {"val"})])
def test_a_share_of_0_or_1(tmp_path, share, splits):
    listing = _listed(_folder(tmp_path, *[f"cat/{i}.png" for i in range(20)]), val_share=share)
    assert {split for _, split in listing.values()} == splits


def test_a_folder_without_images_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"no images under .*\.jpg"):
        imagefolder.read(tmp_path, 0, root=_folder(tmp_path, "cat/notes.txt"))


def test_class_folders_may_be_links(tmp_path):
    _folder(tmp_path / "all", "cat/1.png")
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "cat").symlink_to(tmp_path / "all" / "cat")
    assert _listed(tmp_path / "some", val_share=0) == {"cat/1.png": (0, "train")}


# --------------------------------------------------------------------------- unusual folders


@pytest.mark.timeout(60)
def test_cycles_of_links_and_pipes_are_harmless(tmp_path):
    root = _folder(tmp_path / "photos", "cat/1.png", "dog/2.png")
    (root / "cat" / "up").symlink_to(root, target_is_directory=True)
    (root / "cat" / "self").symlink_to(root / "cat" / "self")
    (root / "dog" / "again.png").symlink_to(root / "dog" / "again.png")
    (root / "dog" / "lost.png").symlink_to(root / "nowhere.png")
    (root / "dog" / "folder.png").mkdir()
    os.mkfifo(root / "dog" / "pipe.png")
    listing = _listed(root, val_share=0)
    assert set(listing) == {
        "cat/1.png", "dog/2.png", "dog/again.png", "dog/lost.png", "dog/pipe.png"
    }  # fmt: skip
    listing = imagefolder.read(root, 0, root=root, val_share=0)
    assert write_manifest(listing, "x", tmp_path / "data", 1) == 3
    assert manifest.load(tmp_path / "data").paths.tolist() == ["cat/1.png", "dog/2.png"]


def test_files_are_sorted_by_the_parts_of_their_paths(tmp_path):
    names = ["b/1.png", "a/2.png", "a/10.png", "a-b/1.png", "a/c/1.png", "B/1.png"]
    names.append("\udcff/1.png")
    listing = list(_listed(_folder(tmp_path, *names), val_share=0))
    expected = [
        "B/1.png",
        "a/10.png",
        "a/2.png",
        "a/c/1.png",
        "a-b/1.png",
        "b/1.png",
        "\udcff/1.png",
    ]
    assert listing == expected


def test_names_that_are_not_utf8_have_a_split_too(tmp_path):
    names = [f"cat/\udcff{i}.png" for i in range(40)]
    listing = _listed(_folder(tmp_path, *names), val_share=0.5)
    assert {split for _, split in listing.values()} == {"train", "val"}


def test_class_names_are_valid_unicode(tmp_path):
    root = _folder(tmp_path, "\udcff/1.png", "é/2.png")
    listing = imagefolder.read(tmp_path, 0, root=root, val_share=0)
    assert listing.classes == ("é", "\\udcff")
    assert {f.path: f.label for f in listing.files} == {"é/2.png": 0, "\udcff/1.png": 1}


@pytest.mark.parametrize(
    ("names", "empty"),
    [
        (["cat/1.png", "dog/notes.txt", "ant/deep/notes.txt"], ("ant", "dog")),
        (["cat/1.png", "dog/deep/2.png"], ()),
        (["train/cat/1.png", "train/dog/a.txt", "val/dog/2.png", "val/eel/a.txt"],
         ("train/dog", "val/eel")),
        (["train/cat/1.png", "train/dog/a.txt"], ("train/dog",)),
    ],
)  # fmt: skip
def test_folders_without_images_are_no_classes(tmp_path, names, empty):
    listing = imagefolder.read(tmp_path, 0, root=_folder(tmp_path, *names))
    assert listing.empty_folders == empty
    assert listing.classes == tuple(sorted({"cat"} | {"dog" for n in names if "2.png" in n}))


LIST_AS_NOBODY = """
import os, sys
from pathlib import Path
from salmask.data.prepare import write_manifest
from salmask.datasets import imagefolder
from salmask.errors import UserError
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
root, out = Path(sys.argv[1]), Path(sys.argv[2])
write_manifest(imagefolder.read(out, 0, root=root, val_share=0), "x", out, 0.9)
try:
    imagefolder.read(out, 0, root=root / "closed")
except UserError as error:
    print(error)
"""


def test_a_folder_that_cannot_be_listed_is_rejected(public_folder):
    root = _folder(
        public_folder / "photos", "cat/1.png", "closed/2.png", "closed/3.png", "dog/4.png"
    )
    (root / "dog" / "4.png").chmod(0)
    (root / "closed").chmod(0)
    out = public_folder / "out"
    out.mkdir()
    out.chmod(0o777)
    try:
        process = subprocess.run(
            [sys.executable, "-c", LIST_AS_NOBODY, str(root), str(out)],
            capture_output=True,
            text=True,
        )
    finally:
        (root / "closed").chmod(0o755)
    assert process.returncode == 0, process.stderr
    assert "data.root: " in process.stdout
    assert "closed cannot be listed: Permission" in process.stdout
    assert (out / "rejected.csv").read_text().splitlines() == [
        "path,reason",
        "closed,permission denied: a folder that cannot be listed",
        "dog/4.png,permission denied",
    ]


# ------------------------------------------------------- split names, and what is not read


@pytest.mark.parametrize(
    ("train", "val"), [("Train", "Val"), ("Training", "Testing"), ("TRAIN", "dev")]
)
def test_names_of_splits_in_other_spellings(tmp_path, train, val):
    root = _folder(tmp_path, f"{train}/cat/1.png", f"{val}/cat/2.png")
    assert _listed(root) == {f"{train}/cat/1.png": (0, "train"), f"{val}/cat/2.png": (0, "val")}


def test_a_test_folder_beside_a_validation_folder_is_a_split_of_its_own(tmp_path):
    root = _folder(tmp_path, *[f"{split}/cat/1.png" for split in ("train", "val", "test", "more")])
    assert {split for _, split in _listed(root).values()} == {"train", "val", "test"}
    (note,) = imagefolder.read(root, 0, root=root).notes
    assert "not read: more (1 images)" in note


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (("train", "val", "dev"), "dev and val"),
        (("train", "Training"), "Training and train"),
        (("train", "car", "bus"), r"looks like a split, and bus \(1 images\), car"),
    ],
)
def test_folders_that_may_be_splits_or_classes_are_an_error(tmp_path, folders, message):
    root = _folder(tmp_path, *[f"{folder}/a/1.png" for folder in folders])
    with pytest.raises(UserError, match=message):
        imagefolder.read(root, 0, root=root)


@pytest.mark.parametrize(
    "extra",
    [".ipynb_checkpoints/1.jpg", "@eaDir/1.jpg/M.jpg", "cat/@eaDir/1.jpg",
     ".Trash-1000/files/1.jpg", "$RECYCLE.BIN/S-1/1.jpg", "__MACOSX/cat/._1.jpg", "cat/._1.png",
     "#recycle/cat/1.png"],
)  # fmt: skip
def test_folders_and_files_of_systems_are_not_read(tmp_path, extra):
    listing = imagefolder.read(tmp_path, 0, root=_folder(tmp_path, "cat/1.png", extra))
    assert listing.classes == ("cat",) and [f.path for f in listing.files] == ["cat/1.png"]
    assert len(listing.notes) == 1


def test_every_file_is_listed_or_counted(tmp_path):
    root = _folder(tmp_path, "cat/1.JFIF.jpg", "cat/2.png")
    for name in ("a.jfif", "b.jpe", "c.avif", "d.jp2", "e.HEIC", "f.heic", "g.ppm", "h"):
        (root / "cat" / name).write_bytes(b"x")
    listing = imagefolder.read(root, 0, root=root)
    assert len(listing.files) == 6
    assert listing.notes == (
        "not read, because of their names: 2 .heic, 1 .ppm, 1 without extension",
    )
