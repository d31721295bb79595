"""Any ConvNet of timm."""

from functools import partial
from pathlib import Path

from salmask.encoders import weight_files
from salmask.saliency.localizers import FittedLocalizer
from salmask.saliency.localizers.assembly import assemble
from salmask.saliency.trunks import timm_config


def any_timm(
    *, arch: str, path: Path | None = None, download: bool = False, sha256: str | None = None
) -> FittedLocalizer:
    """A ConvNet of timm, with the normalisation of its pretrained configuration.

    Args:
        arch: name of the network in timm, with or without a tag (`resnet10t.c3_in1k`).
        path: a file in timm's layout.
        download: whether to download a missing file from timm's model hub. The hub publishes no
            hashes, so `sha256` is needed.
        sha256: of the file, 64 hex digits.

    Raises:
        UserError: for an unknown name, for a network without a convolutional trunk, and as
            `weight_files.of_timm` and `weight_files.fitted` do.
    """
    config = timm_config(arch)
    name = config.get("hf_hub_filename", "model.safetensors")
    locate = partial(weight_files.of_timm, config.get("hf_hub_id"), name, path, download, sha256)
    return assemble("timm", "timm", arch, tuple(config["mean"]), tuple(config["std"]), locate)


LOCALIZER = any_timm
