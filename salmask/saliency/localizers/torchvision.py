"""Any ConvNet among torchvision's classifiers."""

from pathlib import Path

from salmask.errors import UserError
from salmask.saliency.localizers import FittedLocalizer
from salmask.saliency.localizers.assembly import from_torchvision
from salmask.saliency.trunks import require_classifier


def any_torchvision(
    *,
    arch: str,
    weights: str = "DEFAULT",
    path: Path | None = None,
    download: bool = False,
    sha256: str | None = None,
) -> FittedLocalizer:
    """A ConvNet of torchvision, with the normalisation of its weights.

    Args:
        arch: name of the network in torchvision.
        weights: a member of the network's weights enum.
        path: the .pth file. By default in torch.hub's folder.
        download: whether to download a missing file.
        sha256: of the file, 64 hex digits.

    Raises:
        UserError: for an unknown name, for a network without a convolutional trunk, and as
            `weight_files.of_torchvision` and `weight_files.fitted` do.
    """
    from torchvision.models import get_model_weights

    require_classifier(arch)
    entries = get_model_weights(arch)
    if weights not in entries.__members__:
        raise UserError(
            f"localizer.weights: {arch} has no `{weights}`; "
            f"choose from {', '.join(entries.__members__)}"
        )
    return from_torchvision("torchvision", arch, entries[weights], path, download, sha256)


LOCALIZER = any_torchvision
