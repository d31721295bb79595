"""Frameworks by file name: `framework: {name: moco}` is the class `Framework` in moco.py.

A framework is a module with

    __init__(encoder, batch, steps, *, options)   encoder: its config; batch: global
    encoder                                       what is exported
    wiring: Wiring                                which views it compares
    losses(views) -> {"loss": (), ...}            without any change of its state
    forward(views, progress) -> the same          one training step; progress: share done

and optionally `projector`, the head of `heads.mlp` on the encoder, left beside it;
`constant_rate`, the names of its submodules whose learning rate stays.
"""

import math
from importlib import import_module
from pathlib import Path
from typing import Any

from salmask.distributed import world_size
from salmask.errors import UserError
from salmask.params.encoder import EncoderConfig
from salmask.params.values import Choice, bind, pick

NAMES = tuple(sorted(p.stem for p in Path(__file__).parent.glob("[a-z]*.py")))


def build(choice: Choice, encoder: EncoderConfig, batch: int, steps: int) -> Any:
    """The framework that params chose around a new encoder: what the module's text describes.

    batch: global. steps: of the whole training. Raises UserError for options that do not fit, also
    for groups of batch norm that a process's share does not hold.
    """
    name = pick({name: name for name in NAMES}, choice, "framework")
    cls = import_module(f"salmask.frameworks.{name}").Framework
    options = bind(cls.__init__, choice, "framework")
    group, share = options.get("bn_group", 0), batch // world_size()
    if group and batch % group:
        raise UserError(f"framework.bn_group: {group} does not divide train.batch ({batch})")
    if group and share % group:
        raise UserError(
            f"framework.bn_group: {group} does not divide the {share} images of each of "
            f"{world_size()} processes (train.batch is {batch}); choose "
            f"{math.gcd(group, share)}, or 0 for "
            "statistics of the whole batch"
        )
    return cls(encoder, batch, steps, **options)
