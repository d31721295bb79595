"""Oxford Flowers-102."""

from io import BytesIO
from pathlib import Path

from salmask.datasets import Dataset, Download, Listing
from salmask.datasets.folders import LayoutError, read_bytes, require_folder, select_folder
from salmask.datasets.listing import listing_by_class
from salmask.errors import UserError

_SPLITS = {"train": "trnid", "val": "valid", "test": "tstid"}  # split -> its key in setid.mat


def read(out: Path, seed: int, *, root: Path) -> Listing:
    """Flowers-102 with its official splits of 1020, 1020 and 6149 images.

    Args:
        root: contains jpg/, imagelabels.mat and setid.mat, or torchvision's folder flowers-102.

    Raises UserError when scipy is not installed.
    """
    try:
        from scipy.io import loadmat
        from scipy.io.matlab import MatReadError
    except ImportError:
        raise UserError("flowers102: .mat files are read by scipy: pip install scipy") from None
    root = select_folder(root, "flowers-102")
    require_folder(root / "jpg")
    files = {name: BytesIO(read_bytes(root / f"{name}.mat")) for name in ("imagelabels", "setid")}
    try:
        labels = loadmat(files["imagelabels"])["labels"].ravel().tolist()
        sets = loadmat(files["setid"])
        numbers = {split: sets[key].ravel().tolist() for split, key in _SPLITS.items()}
    except (KeyError, ValueError, MatReadError) as error:
        raise LayoutError(
            f"{root}: imagelabels.mat or setid.mat is not in the expected format: {error!r}"
        ) from None
    split_of = {number: split for split, members in numbers.items() for number in members}
    splits = {_path(number): split for number, split in sorted(split_of.items())}
    class_names = {_path(number): f"{labels[number - 1]:03d}" for number in split_of}
    return listing_by_class(root, class_names, splits)


def _path(number: int) -> str:
    return f"jpg/image_{number:05d}.jpg"


DATASET = Dataset(
    read,
    layout="jpg/, imagelabels.mat and setid.mat, or flowers-102 that contains these",
    origin="Oxford's Visual Geometry Group",
    terms="none stated; for research",
    downloads={
        "flowers102": Download(
            "Flowers102",
            ("flowers-102/jpg", "flowers-102/imagelabels.mat", "flowers-102/setid.mat"),
            0.4,
            packages=("scipy",),
        )
    },
)
