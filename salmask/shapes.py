"""The tensor vocabulary: what the letters in every docstring mean, and what views travel together.

B  samples in a batch            N  rows of a manifest, or U*V patches where the text says so
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
    """Normalised, unmasked views of each image and what is salient in them.

    query, key: (B,C,H,W) float32. query_activation, key_activation: (B,U,V) float32 activation
    maps resampled to the views, or None where no mask of the run looks at saliency. extra: further
    views (B,C,H,W), each with a crop and photometry of its own.
    """

    query: Tensor
    key: Tensor
    query_activation: Tensor | None = None
    key_activation: Tensor | None = None
    extra: tuple[Tensor, ...] = ()

    def swapped(self) -> "Pair":
        """The same two views in each other's place."""
        return Pair(self.key, self.query, self.key_activation, self.query_activation, self.extra)


@dataclass(frozen=True)
class Mixed:
    """Views made of more than their own image, and what they should resemble.

    images: (B,C,H,W) float32. positives: pairs of (rows, weight), (B,) int64 and (B,) float32:
    sample i is pulled to the clean key of sample rows[i] with weight[i].
    """

    images: Tensor
    positives: tuple[tuple[Tensor, Tensor], ...]


@dataclass(frozen=True)
class Masked:
    """What a mask makes of a pair. query, key: (B,C,H,W), masked or not. negatives: hard negatives
    (B,C,H,W) cut from the key view. extra: more masked views. mixed: terms beside the framework's
    own."""

    query: Tensor
    key: Tensor
    negatives: tuple[Tensor, ...] = ()
    extra: tuple[Tensor, ...] = ()
    mixed: tuple[Mixed, ...] = ()


@dataclass(frozen=True)
class Wiring:
    """Which views a framework compares: all that a mask needs to know of it.

    name: how messages call it. roles: `query` compares queries with the key; `both` also the other
    way round, since each view is a query and a key there; `pairs` compares two views once, since
    its loss is symmetric. weight: of one comparison. hard_negatives: whether it has a place for
    them.
    """

    name: str
    roles: Literal["query", "both", "pairs"] = "query"
    weight: float = 1.0
    hard_negatives: bool = False


@dataclass(frozen=True)
class Views:
    """What a framework trains on.

    images: views (B,C,H,W) float32; images[1] is the key of the first direction, and the clean view
    that `mixed` refers to. pairs: (online view, target view, weight), the comparisons that add up
    to the loss. shuffle: int64, the permutation of the global batch that forms the key encoder's
    batch-norm groups. negatives: target view -> the hard negatives cut from it, (B,C,H,W) each.
    """

    images: tuple[Tensor, ...]
    pairs: tuple[tuple[int, int, float], ...]
    shuffle: Tensor
    negatives: Mapping[int, tuple[Tensor, ...]] = field(default_factory=dict)
    mixed: tuple[Mixed, ...] = ()

    def map(self, function: Callable[[Tensor], Tensor]) -> "Views":
        """The same comparisons on views that went through `function`, each once."""
        return replace(
            self,
            images=tuple(function(image) for image in self.images),
            negatives={
                view: tuple(function(image) for image in several)
                for view, several in self.negatives.items()
            },
            mixed=tuple(replace(mixed, images=function(mixed.images)) for mixed in self.mixed),
        )

    @property
    def online(self) -> list[int]:
        """The views that are compared with a target, in order."""
        return sorted({online for online, _, _ in self.pairs})

    @property
    def targets(self) -> list[int]:
        """The views that others are compared with, in order."""
        return sorted({target for _, target, _ in self.pairs})
