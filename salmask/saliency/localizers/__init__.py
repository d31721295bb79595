"""Localizers by name: where the weights of the frozen network for saliency come from.

Each module defines one function, `LOCALIZER`. Its keyword-only arguments are the options of
`localizer:` in params.yaml. It locates the weights, checks them, and returns the description of the
network and its weights under our names. Nothing is downloaded unless `download: true` is set; the
error for missing weights says which file to put where.
"""

from collections.abc import Callable

from torch import Tensor

from salmask.by_name import ByName
from salmask.saliency.trunks import Localizer

FittedLocalizer = tuple[Localizer, dict[str, Tensor]]  # description, weights by name
LOCALIZERS: ByName[Callable[..., FittedLocalizer]] = ByName(
    "salmask.saliency.localizers", "LOCALIZER"
)
