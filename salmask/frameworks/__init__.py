"""Frameworks by name: `framework: {name: moco}` in params.yaml selects the class `Framework` of
moco.py.

A new framework is one new module here with a class `Framework`, a subclass of `BaseFramework`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from salmask.by_name import ByName
from salmask.distributed import world_size
from salmask.errors import UserError
from salmask.params.encoder import EncoderConfig
from salmask.params.values import Choice, bind, pick
from salmask.shapes import Views, Wiring


class BaseFramework(nn.Module, ABC):
    """Base class of the frameworks. A subclass has these attributes and methods.

    The keyword-only arguments of its `__init__` are its options in params.yaml. A submodule
    `projector`, the projection head on the encoder, is optional; if present, it is saved beside
    the encoder.

    Attributes:
        encoder: the network that is exported.
        wiring: which views the framework compares.
        constant_rate: names of submodules with a constant learning rate.
    """

    encoder: nn.Module
    wiring: Wiring
    constant_rate: ClassVar[tuple[str, ...]] = ()

    def __init__(self, encoder: EncoderConfig, wiring: Wiring, **options: Any) -> None:
        super().__init__()
        self.wiring = wiring

    @classmethod
    @abstractmethod
    def check(cls, batch: int, options: Mapping[str, Any]) -> Wiring:
        """The wiring for these options. Builds no network.

        Args:
            batch: global batch size.
            options: all options, with defaults filled in.

        Raises UserError for options that do not fit.
        """

    @abstractmethod
    def forward(self, views: Views, progress: float) -> dict[str, Tensor]:
        """A training step up to the loss: the same as `losses`, plus updates of the state.

        Args:
            views: what is compared.
            progress: share of the training that is done.
        """

    def finish_step(self) -> None:
        """Called after the backward pass of each step. Changes what that pass still reads."""

    @abstractmethod
    def losses(self, views: Views) -> dict[str, Tensor]:
        """`loss` () and further metrics (). Changes no state except that of batch norms."""


FRAMEWORKS: ByName[type[BaseFramework]] = ByName("salmask.frameworks", "Framework")


def wiring_of(choice: Choice, batch: int) -> Wiring:
    """The wiring of a framework. Builds no network.

    Args:
        choice: name and options of the framework.
        batch: global batch size.

    Raises UserError for an unknown framework and for options that do not fit.
    """
    framework, options = framework_and_options(choice)
    return _check(framework, options, batch)


def build(choice: Choice, encoder: EncoderConfig, batch: int) -> BaseFramework:
    """A framework with a new encoder. Draws from PyTorch's global generator.

    Args:
        choice: name and options of the framework.
        encoder: the section `encoder`.
        batch: global batch size.

    Raises UserError for an unknown framework and for options that do not fit.
    """
    framework, options = framework_and_options(choice)
    return framework(encoder, _check(framework, options, batch), **options)


def framework_and_options(choice: Choice) -> tuple[type[BaseFramework], dict[str, Any]]:
    """The class of a framework, and its options with defaults filled in.

    Raises UserError for an unknown framework and for options that are not allowed.
    """
    framework = pick(FRAMEWORKS, choice.name, "framework.name")
    return framework, bind(framework.__init__, choice.options, "framework")


def _check(framework: type[BaseFramework], options: Mapping[str, Any], batch: int) -> Wiring:
    """The wiring; checks that the groups of batch norms divide the batch of each process."""
    group, share = options.get("bn_group", 0), batch // world_size()
    if group and batch % group:
        raise UserError(f"framework.bn_group: {group} does not divide train.batch ({batch})")
    if group and share % group:
        raise UserError(
            f"framework.bn_group: {group} does not divide the {share} images of each of "
            f"{world_size()} processes (train.batch is {batch}); choose "
            f"{math.gcd(group, share)}, or 0 for statistics of the whole batch"
        )
    return framework.check(batch, options)
