"""`salmask gallery`: draws the masks on a user's own images."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from salmask.data.decode import decode
from salmask.data.resample import resample
from salmask.datasets.folders import images_below
from salmask.errors import UserError
from salmask.files import write_bytes
from salmask.masks.on_disk import load_masker
from salmask.params.run import read_run
from salmask.params.values import check
from salmask.params.view import ViewConfig
from salmask.params.yaml_file import Params
from salmask.provenance import find_root
from salmask.report.gallery import mask_sheet, masks_of
from salmask.saliency.localizers.lite0 import lite0
from salmask.saliency.scda import activation_map
from salmask.saliency.trunks import Trunk

_FROM_FOLDER = 8  # images of a folder that are drawn
_LEVEL = 224  # px: the smallest side at which the localizer scores an image


def draw_gallery(
    paths: Sequence[Path], out: Path, size: int, grid: int, run_name: str | None
) -> None:
    """Writes a PNG with two views of each image and every mask on them.

    Args:
        paths: image files, or folders, of which the first images are drawn.
        out: the PNG to write.
        size: side of the views in px.
        grid: patches per side.
        run_name: a run of params.yaml whose mask is drawn too, with its view options in place of
            `size` and `grid`.

    Raises:
        UserError: for a file that is not an image, or options that do not fit.
    """
    runs, maskers = [], {}
    if run_name is not None:
        root = find_root()
        run = read_run(Params.read(root / "params.yaml"), run_name)
        if masker := load_masker(root / "artifacts/pretrain" / run_name, run):
            maskers[run_name] = masker
        runs, size, grid = [run], run.view.size, run.view.grid
    spec, tensors = lite0()
    trunk = Trunk(spec)
    trunk.layers.load_state_dict(tensors)
    images = [_open(file) for path in paths for file in _files(path)]
    if len(images) == 1:
        print("one image: masks that mix images (MixMask, UnMix) have no other image to mix with")
    level = max(size, _LEVEL)
    whole = torch.stack([resample(image, (level, level)) for image in images])
    with torch.inference_mode():
        activation = activation_map(trunk(whole.float() / 255))
    view = check({"size": size, "grid": grid}, ViewConfig, "--size and --grid")
    maps = {level: activation / activation.mean(dim=(1, 2), keepdim=True)}
    write_bytes(out, mask_sheet(images, maps, view, masks_of(runs, maskers)))


def _files(path: Path) -> list[Path]:
    """The file itself, or the first images below a folder. Raises UserError if there is none."""
    if not path.is_dir():
        return [path]
    files = [path / name for name in images_below(path)[0][:_FROM_FOLDER]]
    if not files:
        raise UserError(f"{path} has no images")
    return files


def _open(path: Path) -> Image.Image:
    try:
        return decode(path)
    except Exception as error:
        raise UserError(f"{path} cannot be read as an image: {error}") from None
