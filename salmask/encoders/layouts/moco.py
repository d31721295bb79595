"""MoCo v1 and v2, of facebookresearch/moco."""

from salmask.encoders.layouts import Layout

LAYOUT = Layout("encoder_q.", ("encoder_k", "queue", "queue_ptr"), rank=1)
