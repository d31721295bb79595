"""torchvision: plain names without a prefix."""

from salmask.encoders.layouts import Layout

LAYOUT = Layout("")
