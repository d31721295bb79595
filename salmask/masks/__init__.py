"""Masks by name: `mask: {name: blur}` in params.yaml selects the record `MASK` of blur.py.

A new mask is one new module here with a record `MASK`. Modules without one are shared code.
Lengths in pixels are for views of 224 px and scale with the size of the view.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from salmask.by_name import ByName
from salmask.randomness import Draws
from salmask.shapes import Pair, Views

Options = Mapping[str, Any]  # the options of a mask, checked, with defaults filled in


class LearnedMask(nn.Module, ABC):
    """Base class of a mask that is trained against the encoder.

    A subclass takes `(side, wiring, *, options)`: the side of the views in px, and the `Wiring` of
    the framework. It sets `lr`, `momentum` and `weight_decay`, the settings of its own SGD.
    """

    lr: float
    momentum: float
    weight_decay: float

    @abstractmethod
    def views(self, pair: Pair, draws: Draws, shuffle: Tensor) -> Views:
        """The views that the encoder trains on. The mask gets no gradient."""

    @abstractmethod
    def loss(
        self,
        losses: Callable[[Views], dict[str, Tensor]],
        pair: Pair,
        draws: Draws,
        shuffle: Tensor,
    ) -> dict[str, Tensor]:
        """The loss of the mask, `masker_loss` (), and further metrics ().

        Args:
            losses: `losses` of the framework, with frozen parameters.
            pair: unmasked views.
            draws: random numbers of the batch.
            shuffle: see `Views`.
        """


@dataclass(frozen=True)
class Mask:
    """Everything that the rest of the program needs from a mask.

    Fields that are functions get the mask's options, with defaults filled in.

    Args:
        function: (pair, draws, grid, *, options) -> `Masked`, or a subclass of `LearnedMask`. Its
            keyword-only arguments are the options in params.yaml.
        label: name in reports and figures.
        learns: whether `function` is a `LearnedMask`.
        frameworks: names of the frameworks that it is defined for; None for all.
        uneven_patches: whether the grid need not divide the view; patches then differ by a pixel.
        reads_saliency: whether it needs the activation maps of a pair.
        hard_negatives: number of hard negatives that it makes for each image.
        extra_views: number of further views that a pair must carry.
        extra_passes: forward and backward passes per image beyond those of the framework, for
            the cost estimate.
        query_only: whether it masks the query only, and adds no views. A framework that compares no
            views needs such a mask.
        input_filter: (options, side in px) -> the filter that the trained encoder needs on every
            input: its name, kernel and sigma in px; None for no filter.
        check: raises ValueError for options that contradict each other. The text begins with the
            key of one of them.
        kinds: title -> options that force one kind of a mask that is drawn at random, for figures.
    """

    function: Callable[..., Any]
    label: str
    learns: bool = False
    frameworks: tuple[str, ...] | None = None
    uneven_patches: bool = False
    reads_saliency: Callable[[Options], bool] = lambda options: False
    hard_negatives: Callable[[Options], int] = lambda options: 0
    extra_views: Callable[[Options], int] = lambda options: 0
    extra_passes: Callable[[Options], int] = lambda options: 0
    query_only: Callable[[Options], bool] = lambda options: False
    input_filter: Callable[[Options, int], dict[str, Any] | None] = lambda options, side: None
    check: Callable[[Options], None] = lambda options: None
    kinds: Mapping[str, Options] = field(default_factory=dict)


MASKS: ByName[Mask] = ByName("salmask.masks", "MASK")
