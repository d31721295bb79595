"""All training images in the memory of the device."""

import torch
from torch import Tensor

from salmask.data.free_memory import free_memory
from salmask.data.manifest import Manifest, read_image
from salmask.data.resample import resample
from salmask.errors import UserError
from salmask.progress import progress

_CANVAS = 1 << 24  # pixels of the images that are cropped together


class ResidentImages:
    """Images on the device, in one flat tensor without padding.

    Args:
        manifest: the manifest.
        ids: (n,) int64, rows of the manifest to load.
        device: where the images are kept, as uint8.

    Raises UserError when the device has less free memory than the images need.
    """

    def __init__(self, manifest: Manifest, ids: Tensor, device: torch.device) -> None:
        sizes = manifest.sizes[ids]
        ends = sizes.prod(dim=1).cumsum(0)
        total = int(ends[-1])
        need, free = 3 * total / 1e9, free_memory(device) / 1e9
        if need > free:
            raise UserError(
                f"images: resident: the {len(ids)} images need {need:.1f} GB, but {device} has "
                f"{free:.1f} GB free; set `images: auto` or `images: stream`"
            )
        self.pixels = torch.empty(3, total, dtype=torch.uint8)
        first = 0
        with progress(f"load images ({need:.2g} GB)", len(ids)) as bar:
            for row, (height, width), end in zip(
                ids.tolist(), sizes.tolist(), ends.tolist(), strict=True
            ):
                image = resample(read_image(manifest, row), (height, width))
                self.pixels[:, first:end] = image.flatten(1)
                first = end
                bar.advance(1)
        self.pixels, self.device = self.pixels.to(device), device
        self.sizes, self.starts = sizes, ends - sizes.prod(dim=1)
        self.slots = torch.full((len(manifest),), -1)  # row of the manifest -> number of the image
        self.slots[ids] = torch.arange(len(ids))

    def crop(self, ids: Tensor, boxes: Tensor, size: int) -> Tensor:
        """Crops images and resizes the crops.

        Each pixel is the mean of several bilinear samples, which avoids aliasing.

        Args:
            ids: (B,) int64, rows of the manifest, on the CPU.
            boxes: (B, 4) y, x, height and width in [0, 1], on the device.
            size: side of the result in px.

        Returns (B, 3, size, size) float32 in [0, 255].
        """
        slots = self.slots[ids]
        pieces = self._pieces(slots)
        if len(pieces) == 1:
            return self._crop(slots, boxes, size)
        crops = boxes.new_empty(len(ids), 3, size, size)
        for piece in pieces:
            places = piece.to(self.device, non_blocking=True)
            crops[places] = self._crop(slots[piece], boxes[places], size)
        return crops

    def _pieces(self, slots: Tensor) -> list[Tensor]:
        """Indices into `slots` of images that fit into one canvas: all, or similar sizes."""
        if len(slots) * int(self.sizes[slots].amax(dim=0).prod()) <= _CANVAS:
            return [torch.arange(len(slots))]
        order, pieces = self.sizes[slots].amax(dim=1).argsort(descending=True), []
        while len(order):
            side = int(self.sizes[slots[order[0]]].amax())
            count = max(1, _CANVAS // side**2)
            pieces.append(order[:count])
            order = order[count:]
        return pieces

    def _crop(self, slots: Tensor, boxes: Tensor, size: int) -> Tensor:
        from torchvision.ops import roi_align  # torchvision takes seconds to import

        images = self._canvas(slots).float()
        wide_high = self.sizes[slots].flip(1).to(self.device, non_blocking=True)
        corners = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1)
        corners = torch.stack([corners[:, i] for i in (1, 0, 3, 2)], dim=1) * wide_high.repeat(1, 2)
        index = torch.arange(len(slots), device=self.device, dtype=corners.dtype)
        rois = torch.cat([index[:, None], corners], dim=1)
        return roi_align(images, rois, (size, size), sampling_ratio=-1, aligned=True)

    def _canvas(self, slots: Tensor) -> Tensor:
        """The images (B, 3, H, W) uint8. Smaller ones repeat their last row and column, since
        bilinear sampling also reads the next pixel."""
        numbers = torch.cat([self.sizes[slots], self.starts[slots, None]], dim=1)
        high, wide, first = numbers.to(self.device, non_blocking=True)[:, :, None].unbind(1)
        height, width = self.sizes[slots].amax(dim=0).tolist()
        rows = torch.arange(height, device=self.device).minimum(high - 1)  # (B,H)
        columns = torch.arange(width, device=self.device).minimum(wide - 1)  # (B,W)
        places = (first + rows * wide)[:, :, None] + columns[:, None]
        return self.pixels[:, places].transpose(0, 1)
