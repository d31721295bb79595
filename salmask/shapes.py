"""Data types that views travel in, and the letters that all docstrings use for shapes.

B  samples in a batch            N  rows of a manifest, or U*V patches where stated
C  image channels (3)            D  dimensions of an embedding, or channels of a feature map
H, W  pixels                     K  keys in the queue
U, V  rows and columns of a grid; one cell of it is a patch

A foreground or patch mask is bool, True where masked or foreground. Boxes are (y, x, h, w) as
shares of the image in [0, 1].
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from torch import Tensor


@dataclass(frozen=True)
class Pair:
    """Normalised, unmasked views of each image, and their activation maps.

    Args:
        query: (B,C,H,W) float32.
        key: (B,C,H,W) float32.
        query_activation: (B,U,V) float32, resampled to the query; None if the run's mask reads no
            saliency.
        key_activation: likewise for the key.
        extra: further views (B,C,H,W), each with its own crop and photometry.
    """

    query: Tensor
    key: Tensor
    query_activation: Tensor | None = None
    key_activation: Tensor | None = None
    extra: tuple[Tensor, ...] = ()

    def swapped(self) -> "Pair":
        """The pair with query and key exchanged."""
        return Pair(self.key, self.query, self.key_activation, self.query_activation, self.extra)


@dataclass(frozen=True)
class Mixed:
    """Mixed queries and their positives.

    Args:
        images: (B,C,H,W) float32.
        positives: pairs of (rows, weight), (B,) int64 and (B,) float32. The positive of sample i
            is the unmasked key of sample rows[i], with weight[i].
    """

    images: Tensor
    positives: tuple[tuple[Tensor, Tensor], ...]


@dataclass(frozen=True)
class Masked:
    """The result of a mask for a pair of views.

    Args:
        query: (B,C,H,W), masked or not.
        key: (B,C,H,W), masked or not.
        negatives: hard negatives (B,C,H,W), made from the key view.
        extra: further masked views (B,C,H,W).
        mixed: mixed queries, whose loss terms are added to the framework's loss.
    """

    query: Tensor
    key: Tensor
    negatives: tuple[Tensor, ...] = ()
    extra: tuple[Tensor, ...] = ()
    mixed: tuple[Mixed, ...] = ()


@dataclass(frozen=True)
class Wiring:
    """Which views a framework compares: everything that a mask needs to know about a framework.

    Args:
        framework: its name in params.yaml.
        label: its name in messages.
        roles: `query` compares queries with the key. `both` compares in both directions, since
            each view is query and key. `pairs` compares each pair of views once, since the loss is
            symmetric.
        weight: of one comparison.
        hard_negatives: whether the loss has negatives, so that hard negatives can be added.
        published: whether this is the published form of the framework. Some masks are defined for
            that form only.
        learned_masks: the views that a learned mask hides: `queries`, or only the `second_view`,
            as query and as target.
        target_encoder: whether a second encoder, without a gradient, embeds targets and hard
            negatives.
        classes: number of classes whose labels the loss reads. Such a framework compares no views,
            and trains on the query alone. 0 for a framework that reads no labels.
    """

    framework: str
    label: str
    roles: Literal["query", "both", "pairs"] = "query"
    weight: float = 1.0
    hard_negatives: bool = False
    published: bool = True
    learned_masks: Literal["queries", "second_view"] = "queries"
    target_encoder: bool = False
    classes: int = 0


@dataclass(frozen=True)
class Views:
    """The views that a framework trains on, and their comparisons.

    Args:
        images: views (B,C,H,W) float32. images[1] is the key of the first direction, and the key
            that `mixed` refers to.
        pairs: comparisons (online view, target view, weight). The loss is their weighted sum.
        shuffle: two permutations (2, global batch) int64. They form the batch-norm groups of the
            keys and of the hard negatives in the key encoder.
        negatives: target view -> hard negatives made from it, (B,C,H,W) each.
        mixed: mixed queries.
        labels: (B,) int64, the class of each image; None if the framework reads no labels.
    """

    images: tuple[Tensor, ...]
    pairs: tuple[tuple[int, int, float], ...]
    shuffle: Tensor
    negatives: Mapping[int, tuple[Tensor, ...]] = field(default_factory=dict)
    mixed: tuple[Mixed, ...] = ()
    labels: Tensor | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> "Views":
        """The same comparisons, with `function` applied to every view once."""
        return replace(
            self,
            images=tuple(function(image) for image in self.images),
            negatives={
                view: tuple(function(image) for image in images)
                for view, images in self.negatives.items()
            },
            mixed=tuple(replace(mixed, images=function(mixed.images)) for mixed in self.mixed),
        )

    @property
    def online(self) -> list[int]:
        """The indices of views that are compared with a target, ascending."""
        return sorted({online for online, _, _ in self.pairs})

    @property
    def targets(self) -> list[int]:
        """The indices of views that are targets, ascending."""
        return sorted({target for _, target, _ in self.pairs})
