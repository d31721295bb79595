"""All training images in the memory of the device."""

import torch
from torch import Tensor

from salmask.data.manifest import Manifest, read_image
from salmask.data.resample import resample
from salmask.progress import progress


class ResidentImages:
    """Images on the device, padded to one size.

    Args:
        manifest: the manifest.
        ids: (n,) int64, rows of the manifest to load.
        device: where the images are kept, as (n, 3, Hmax, Wmax) uint8.
    """

    def __init__(self, manifest: Manifest, ids: Tensor, device: torch.device) -> None:
        height, width = (int(n) for n in manifest.sizes[ids].amax(0))
        self.canvas = torch.zeros((len(ids), 3, height, width), dtype=torch.uint8)
        with progress("load images", len(ids)) as bar:
            for slot, row in enumerate(ids.tolist()):
                image = read_image(manifest, row)
                pixels = resample(image, (int(manifest.sizes[row, 0]), int(manifest.sizes[row, 1])))
                # Repeat the last row and column, since bilinear sampling also reads the next pixel.
                padded = torch.nn.functional.pad(pixels.float(), (0, 1, 0, 1), mode="replicate")
                padded = padded[:, :height, :width].to(torch.uint8)
                self.canvas[slot, :, : padded.shape[1], : padded.shape[2]] = padded
                bar.advance(1)
        self.canvas = self.canvas.to(device)
        self.sizes = manifest.sizes[ids].to(device)
        self.slot = torch.full((len(manifest),), -1)  # row of the manifest -> row of the canvas
        self.slot[ids] = torch.arange(len(ids))
        self.slot = self.slot.to(device)

    def crop(self, ids: Tensor, boxes: Tensor, size: int) -> Tensor:
        """Crops images and resizes the crops.

        Each pixel is the mean of several bilinear samples, which avoids aliasing.

        Args:
            ids: (B,) int64, rows of the manifest.
            boxes: (B, 4) y, x, height and width in [0, 1].
            size: side of the result in px.

        Returns (B, 3, size, size) float32 in [0, 255].
        """
        from torchvision.ops import roi_align  # torchvision takes seconds to import

        slots = self.slot[ids]
        images = self.canvas[slots].float()
        high, wide = self.sizes[slots].unbind(1)
        y, x, h, w = boxes.unbind(1)
        corners = torch.stack([x * wide, y * high, (x + w) * wide, (y + h) * high], dim=1)
        index = torch.arange(len(ids), device=images.device, dtype=corners.dtype)
        rois = torch.cat([index[:, None], corners], dim=1)
        return roi_align(images, rois, (size, size), sampling_ratio=-1, aligned=True)
