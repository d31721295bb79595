"""`salmask gallery`: draws the masks on a user's own images."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from salmask.data.decode import decode
from salmask.data.resample import resample
from salmask.errors import UserError
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

_LEVEL = 224  # px: the smallest side at which the localizer scores an image


def draw_gallery(
    paths: Sequence[Path], out: Path, size: int, grid: int, run_name: str | None
) -> None:
    """Writes a PNG with two views of each image and every mask on them.

    Args:
        paths: image files.
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
    images = [_open(path) for path in paths]
    level = max(size, _LEVEL)
    whole = torch.stack([resample(image, (level, level)) for image in images])
    with torch.inference_mode():
        activation = activation_map(trunk(whole.float() / 255))
    view = check({"size": size, "grid": grid}, ViewConfig, "--size and --grid")
    maps = {level: activation / activation.mean(dim=(1, 2), keepdim=True)}
    out.write_bytes(mask_sheet(images, maps, view, masks_of(runs, maskers)))


def _open(path: Path) -> Image.Image:
    try:
        return decode(path)
    except Exception as error:
        raise UserError(f"{path} cannot be read as an image: {error}") from None
