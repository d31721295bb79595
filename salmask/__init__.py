"""Self-supervised pretraining of ConvNets with masking as an augmentation.

The names in `__all__` are the public interface. They are imported when first used, so that
`import salmask` is fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from salmask.encoders.on_disk import load_encoder
    from salmask.masks import MASKS
    from salmask.saliency.store import SaliencyStore

__version__ = "0.2.0"
__all__ = ["MASKS", "SaliencyStore", "load_encoder"]
_MODULES = {
    "MASKS": "salmask.masks",
    "SaliencyStore": "salmask.saliency.store",
    "load_encoder": "salmask.encoders.on_disk",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module `salmask` has no attribute `{name}`")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
