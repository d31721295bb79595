"""The tensor vocabulary: what the letters in every docstring mean, and what views travel together.

B  samples in a batch            N  rows of a manifest, or U*V patches where the text says so
C  image channels (3)            D  dimensions of an embedding, or channels of a feature map
H, W  pixels                     K  keys in the queue
U, V  rows and columns of a grid; one cell of it is a patch

A foreground or patch mask is bool, True where masked or foreground. Boxes are (y, x, h, w) as
shares of the image in [0, 1].
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Pair:
    """Two normalised, unmasked views of each image and what is salient in them.

    query, key: (B,C,H,W) float32. query_activation, key_activation: (B,U,V) float32 activation
    maps resampled to the views, or None where no mask of the run looks at saliency.
    """

    query: Tensor
    key: Tensor
    query_activation: Tensor | None = None
    key_activation: Tensor | None = None


@dataclass(frozen=True)
class Views:
    """What a framework trains on.

    query: (B,C,H,W) float32, masked. key: (B,C,H,W) float32. negative: (B,C,H,W) float32, the
    hard negative cut from the same image's key view, or None. shuffle: (B,) int64, the
    permutation that forms the key encoder's batch-norm groups.
    """

    query: Tensor
    key: Tensor
    negative: Tensor | None
    shuffle: Tensor
