"""solo-learn."""

from salmask.encoders.layouts import Layout

OTHERS = (
    "classifier", "projector", "predictor", "prototypes", "queue", "queue_y", "queue_ptr",
    "momentum_backbone", "momentum_encoder", "momentum_projector", "momentum_predictor",
    "momentum_classifier",
)  # fmt: skip
LAYOUT = Layout("backbone.", OTHERS, same_small_stem=False, rank=5)
