"""Decoded images that stay in the memory of the host.

The first epoch decodes each image and keeps it; later epochs only crop. Worker processes share the
memory. The bytes of the views are those of `images: stream`: kept are images of which every crop
is made at full scale, so that an image is the same for all crops.
"""

import mmap

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from salmask.data.free_memory import free_memory
from salmask.data.manifest import Manifest, is_replacement, read_image
from salmask.distributed import world_size

SHARE = 0.5  # of the free memory, that decoded images may fill


class DecodedImages:
    """The images of a manifest, of which some are kept after their first use.

    The kept images are in one flat buffer, without padding, and a byte for each says whether it is
    there. Processes that are forked later share the buffer. It takes memory as it fills.

    Args:
        manifest: the manifest.
        kept: (k,) int64, rows of the manifest to keep; see `rows_to_keep`.
    """

    def __init__(self, manifest: Manifest, kept: Tensor) -> None:
        self.manifest = manifest
        self.slots = torch.full((len(manifest),), -1)
        self.slots[kept] = torch.arange(len(kept))
        ends = _bytes_of(manifest, kept).cumsum(0)
        self.starts = torch.cat([torch.zeros(1, dtype=torch.int64), ends])
        self.present = self.pixels = np.zeros(0, np.uint8)
        if len(kept):
            self.present, self.pixels = _shared(len(kept)), _shared(int(ends[-1]))

    def read(self, row: int, at_least: int) -> Image.Image:
        """The image of a row, as `read_image` gives it."""
        slot = int(self.slots[row])
        if slot < 0:
            return read_image(self.manifest, row, at_least)
        height, width = self.manifest.sizes[row].tolist()
        pixels = self.pixels[int(self.starts[slot]) : int(self.starts[slot + 1])]
        if self.present[slot]:
            return Image.frombuffer("RGB", (width, height), pixels, "raw", "RGB", 0, 1)
        image = read_image(self.manifest, row, at_least)
        if image.size == (width, height) and not is_replacement(image):
            pixels[:] = np.asarray(image).reshape(-1)
            self.present[slot] = 1  # last: other processes read the pixels then
        return image


def rows_to_keep(manifest: Manifest, ids: Tensor, size: int) -> Tensor:
    """The rows to keep in memory: all or none of those that can be kept.

    An image can be kept if its shorter side is less than twice the side of a view: then it is
    decoded at full scale for every crop. They are kept if they fill at most SHARE of the free
    memory. Processes that share a batch divide the memory.

    Args:
        manifest: the manifest.
        ids: (n,) int64, rows that are used.
        size: side of a view in px.
    """
    kept = ids[manifest.sizes[ids].amin(dim=1) < 2 * size]
    total = int(_bytes_of(manifest, kept).sum()) * world_size()
    return kept if total <= SHARE * free_memory(torch.device("cpu")) else ids[:0]


def _bytes_of(manifest: Manifest, rows: Tensor) -> Tensor:
    return 3 * manifest.sizes[rows].prod(dim=1)


def _shared(count: int) -> np.ndarray:
    """`count` zero bytes of memory that forked processes share."""
    return np.frombuffer(mmap.mmap(-1, count), dtype=np.uint8)
