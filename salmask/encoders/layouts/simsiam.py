"""SimSiam, of facebookresearch/simsiam."""

from salmask.encoders.layouts import Layout

LAYOUT = Layout("encoder.", ("predictor",), rank=3)
