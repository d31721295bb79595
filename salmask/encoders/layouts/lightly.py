"""lightly, with the ResNet of its examples."""

from salmask.encoders.layouts import Layout

_OTHERS = (
    "projection_head", "prediction_head", "backbone_momentum", "projection_head_momentum",
    "prototypes", "memory_bank", "criterion",
)  # fmt: skip
LAYOUT = Layout("backbone.", _OTHERS, numbered=True, rank=4)
