"""The first versions of solo-learn."""

from salmask.encoders.layouts import Layout
from salmask.encoders.layouts.solo import OTHERS

LAYOUT = Layout("encoder.", OTHERS, same_small_stem=False, rank=6)
