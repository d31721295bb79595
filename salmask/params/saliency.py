"""The section `saliency:` of params.yaml."""

from typing import Literal

from pydantic.dataclasses import dataclass

from salmask.params.ranges import Levels, NonNegativeInt, PositiveInt
from salmask.params.values import STRICT

_SHARD_ROWS = 1024  # images per shard by default; more for large sets
_MOST_SHARDS = 128  # of a store: a store of three levels then has fewer than 1,000 files


@dataclass(frozen=True, config=STRICT)
class SaliencyConfig:
    """Options of `saliency:`.

    Args:
        levels: sides in px at which whole images are scored. The first one is for whole images.
        correction: number of views that the correction of a store is fitted on; 0 for none.
        precision: of the localizer. `float32` depends least on the device; `auto` is bfloat16 on
            CUDA.
        shard_rows: images per unit of work. None: 1024, and more for over 131,072 images, so that a
            store has at most 128 shards.
        batch: images per forward pass. It is part of the result, because it changes rounding.
    """

    levels: Levels = (224, 320, 448)
    correction: NonNegativeInt = 1024
    precision: Literal["auto", "float32", "bfloat16"] = "float32"
    shard_rows: PositiveInt | None = None
    batch: PositiveInt = 32

    def rows_per_shard(self, images: int) -> int:
        """Images per unit of work, for a number of images."""
        if self.shard_rows is not None:
            return self.shard_rows
        rows = _SHARD_ROWS
        while rows * _MOST_SHARDS < images:
            rows *= 2
        return rows
