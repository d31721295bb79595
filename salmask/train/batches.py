"""From crops to the batches of pretraining: photometry, crops of saliency maps, masks."""

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from salmask.data.loader import Crops
from salmask.data.normalisation import normalise
from salmask.data.photometry import change_colours, random_numbers
from salmask.data.views import BRANCHES
from salmask.distributed import world_size
from salmask.masks.wiring import WiredMask
from salmask.params.run import RunConfig
from salmask.pieces import in_pieces
from salmask.randomness import Draws, batch_shuffle
from salmask.saliency.store import SaliencyStore
from salmask.shapes import Pair, Views


@dataclass(frozen=True)
class Batch:
    """The inputs of one step.

    Args:
        pair: unmasked views, with saliency maps if the mask reads them.
        draws: random numbers of the samples.
        shuffle: see `Views`.
        labels: (B,) int64, the class of each image, if the framework reads labels.
    """

    pair: Pair
    draws: Draws
    shuffle: Tensor
    labels: Tensor | None = None

    def views(self, mask: WiredMask) -> Views:
        """The masked views, in the memory layout of the fastest convolutions."""
        views = mask.views(self.pair, self.draws, self.shuffle).map(_fast)
        return replace(views, labels=self.labels)


def make_batch(
    crops: Crops,
    config: RunConfig,
    seed: int,
    store: SaliencyStore | None,
    labels: Tensor | None = None,
) -> Batch:
    """The batch of this process, on the device of its crops.

    Args:
        crops: crops of the images.
        config: the run.
        seed: seed of the run.
        store: saliency maps; None if the run's mask reads no saliency.
        labels: (N,) int64, the class of each row of the manifest; None if the run's framework reads
            no labels.
    """
    draws = Draws.of(seed, crops.epoch, crops.ids)

    def finish(branch: str, pixels: Tensor, u: Tensor) -> Tensor:
        return normalise(change_colours(pixels.float().div_(255), u, branch, config.view))

    views_of = {
        branch: in_pieces(partial(finish, branch), pixels, random_numbers(draws, branch))
        for branch, pixels in crops.crops.items()
    }
    maps: dict[str, Tensor] = {}
    if store is not None:
        grid = (config.view.grid, config.view.grid)
        for branch in BRANCHES:
            boxes, flips = crops.boxes[branch], crops.flips[branch]
            maps[branch] = store.crop(crops.ids, boxes, flips, grid)
    extra = tuple(view for branch, view in views_of.items() if branch not in BRANCHES)
    pair = Pair(views_of["query"], views_of["key"], maps.get("query"), maps.get("key"), extra)
    count = world_size() * len(crops.ids)
    shuffle = batch_shuffle(seed, crops.epoch, crops.step, count, crops.ids.device)
    own_labels = None if labels is None else labels[crops.ids]
    return Batch(pair, draws, shuffle, own_labels)


def _fast(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)
