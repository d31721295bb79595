import numpy as np
import pytest
from PIL import Image

from salmask.data import manifest, sources
from salmask.data.demo import CLASSES, render
from salmask.data.images import decode
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
    found = sources.imagefolder(root, seed, root=root, **options)
    assert found.root == root.resolve()
    return {f.path: (f.label, f.split) for f in found.files}


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
    assert sources.imagefolder(root, 0, root=root).classes == ("cat", "dog")


def test_class_folders_are_split_by_share(tmp_path):
    names = [f"{kind}/{i:03d}.png" for kind in ("cat", "dog") for i in range(60)]
    found = _listed(_folder(tmp_path, *names), val_share=0.25)
    assert len(found) == 120
    assert {name: label for name, (label, _) in found.items()} == {
        name: int(name.startswith("dog")) for name in names
    }
    held = sum(split == "val" for _, split in found.values())
    assert 15 < held < 45  # 30 expected, deviation 4.7


def test_a_train_folder_alone_is_split_too(tmp_path):
    found = _listed(_folder(tmp_path, *[f"train/cat/{i}.png" for i in range(40)]), val_share=0.5)
    assert {split for _, split in found.values()} == {"train", "val"}
    assert {label for label, _ in found.values()} == {0}


def test_images_without_class_folders_have_no_label_and_all_train(tmp_path):
    found = _listed(_folder(tmp_path, *[f"{i}.png" for i in range(20)]), val_share=0.5)
    assert set(found.values()) == {(-1, "train")}
    assert sources.imagefolder(tmp_path, 0, root=tmp_path).classes == ()


def test_adding_images_moves_none_to_the_other_split(tmp_path):
    before = _listed(_folder(tmp_path, *[f"cat/{i}.png" for i in range(40)]), val_share=0.3)
    after = _listed(
        _folder(tmp_path, *[f"cat/{i}b.png" for i in range(40)], "ant/1.png"), val_share=0.3
    )
    assert {name: split for name, (_, split) in before.items()} == {
        name: after[name][1] for name in before
    }


def test_the_seed_chooses_the_split_and_repeats_it(tmp_path):
    _folder(tmp_path, *[f"cat/{i}.png" for i in range(40)])
    assert _listed(tmp_path, 1, val_share=0.5) == _listed(tmp_path, 1, val_share=0.5)
    assert _listed(tmp_path, 1, val_share=0.5) != _listed(tmp_path, 2, val_share=0.5)


@pytest.mark.parametrize(("share", "splits"), [(0.0, {"train"}), (1.0, {"val"})])
def test_a_share_of_nothing_or_all(tmp_path, share, splits):
    found = _listed(_folder(tmp_path, *[f"cat/{i}.png" for i in range(20)]), val_share=share)
    assert {split for _, split in found.values()} == splits


def test_a_missing_folder_is_told(tmp_path):
    with pytest.raises(UserError, match=r"data\.root: .*absent is not a folder"):
        sources.imagefolder(tmp_path, 0, root=tmp_path / "absent")


def test_a_folder_without_images_is_told(tmp_path):
    with pytest.raises(UserError, match=r"no images under .*\.jpg"):
        sources.imagefolder(tmp_path, 0, root=_folder(tmp_path, "cat/notes.txt"))


def test_class_folders_may_be_links(tmp_path):
    _folder(tmp_path / "all", "cat/1.png")
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "cat").symlink_to(tmp_path / "all" / "cat")
    assert _listed(tmp_path / "some", val_share=0) == {"cat/1.png": (0, "train")}


def test_the_demo_draws_images_and_masks(tmp_path):
    counts = {"train": 12, "val": 3, "decorrelated": 2}
    found = sources.demo(tmp_path, 5, root="ignored", images=counts)
    assert found.classes == CLASSES
    assert [f.split for f in found.files] == ["train"] * 12 + ["val"] * 3 + ["decorrelated"] * 2
    manifest.write(found, "demo", tmp_path, 0)
    rows = manifest.load(tmp_path)
    drawn = render(5, "val", 2)
    row = rows.paths.tolist().index("val/00002.png")
    assert np.array_equal(np.array(decode(rows.file(row))), drawn.image)
    mask = np.array(Image.open(tmp_path / "masks" / "val" / "00002.png"))
    assert np.array_equal(mask.astype(bool), drawn.mask)
    assert rows.labels[row] == drawn.label


# -------------------------------------------------------------------------------------- decode


@pytest.mark.parametrize(
    ("orientation", "corner"),
    # where the red pixel of the file's upper left corner stands in the upright image (x, y)
    [(1, (0, 0)), (2, (3, 0)), (3, (3, 1)), (4, (0, 1)), (5, (0, 0)), (6, (1, 0)), (8, (0, 3))],
)
def test_images_are_turned_upright(tmp_path, orientation, corner):
    image = Image.new("RGB", (4, 2), "blue")
    image.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "turned.png", exif=exif)
    upright = decode(tmp_path / "turned.png")
    assert upright.size == ((2, 4) if orientation >= 5 else (4, 2))
    assert upright.getpixel(corner) == (255, 0, 0)


def test_the_manifest_holds_the_upright_size(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(tmp_path / "turned.jpg", exif=exif)
    manifest.write(
        manifest.Listing(tmp_path, (), [manifest.Found("turned.jpg", -1, "train")]),
        "x",
        tmp_path / "data",
        0,
    )
    assert manifest.load(tmp_path / "data").sizes.tolist() == [[40, 20]]


@pytest.mark.parametrize(
    ("mode", "colour", "suffix", "wanted"),
    [
        ("RGB", (200, 100, 50), "png", (200, 100, 50)),
        ("RGBA", (200, 100, 50, 30), "png", (200, 100, 50)),
        ("L", 120, "png", (120, 120, 120)),
        ("LA", (120, 9), "png", (120, 120, 120)),
        ("1", 1, "png", (255, 255, 255)),
        ("CMYK", (0, 255, 255, 0), "jpg", (255, 0, 0)),
        ("L", 120, "jpg", (120, 120, 120)),
        ("P", 7, "gif", (0, 255, 0)),
        ("P", 7, "png", (0, 255, 0)),
    ],
)
def test_every_kind_of_image_becomes_rgb(tmp_path, mode, colour, suffix, wanted):
    image = Image.new(mode, (16, 16), colour)
    if mode == "P":
        image.putpalette(
            [value for i in range(256) for value in ((0, 255, 0) if i == 7 else (i,) * 3)]
        )
    path = tmp_path / f"image.{suffix}"
    image.save(path)
    found = decode(path)
    assert found.mode == "RGB"
    assert found.getpixel((8, 8)) == pytest.approx(wanted, abs=3)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_gray_is_scaled_to_8_bits(tmp_path, suffix):
    values = np.array([[0, 12850, 32896, 65535]], dtype=np.uint16)  # 257 times 0, 50, 128, 255
    Image.fromarray(values).save(tmp_path / f"deep.{suffix}")
    found = np.array(decode(tmp_path / f"deep.{suffix}"))
    assert np.abs(found[0, :, 0].astype(int) - [0, 50, 128, 255]).max() <= 1


@pytest.mark.parametrize(
    ("at_least", "size"),
    [(None, (800, 400)), (400, (800, 400)), (200, (400, 200)), (60, (200, 100))],
)
def test_a_large_jpeg_is_decoded_no_larger_than_needed(tmp_path, at_least, size):
    Image.new("RGB", (800, 400), "teal").save(tmp_path / "large.jpg")
    assert decode(tmp_path / "large.jpg", at_least).size == size
