"""Frameworks by file name: `framework: {name: moco}` is the class `Framework` in moco.py."""

from importlib import import_module
from pathlib import Path

from torch import nn

from salmask.config import Choice, EncoderConfig, bind, pick

NAMES = tuple(sorted(p.stem for p in Path(__file__).parent.glob("[a-z]*.py")))


def build(choice: Choice, encoder: EncoderConfig, batch: int, steps: int) -> nn.Module:
    """The framework that params chose around a new encoder.

    batch: global. steps: of the whole training. Raises UserError for options that do not fit.
    """
    name = pick({name: name for name in NAMES}, choice, "framework")
    cls = import_module(f"salmask.frameworks.{name}").Framework
    return cls(encoder, batch, steps, **bind(cls.__init__, choice, "framework"))
