"""MoCo v3, of facebookresearch/moco-v3."""

from salmask.encoders.layouts import Layout

LAYOUT = Layout("base_encoder.", ("momentum_encoder", "predictor"), rank=2)
