"""A correction that brings crops of cached maps closer to the localizer's maps of the views.

The localizer's map of a view differs from a crop of its map of the whole image: the view lacks the
context, has zero padding at its own border, and shows objects at another scale. These effects are
similar for all images. A small network learns them from about a thousand views, once per store.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from salmask.saliency.crops import blend

MARGIN = 1  # cells around a view that the network reads
_HIDDEN, _STEPS, _BATCH, _RATE, _DECAY = 32, 600, 256, 3e-3, 0.05
_POSITION_CHANNELS = 7


class Correction(nn.Module):
    """Adds a correction to the blended map, computed from the crops of all levels, the position of
    each cell in the view, and the zoom. Adds zero before training."""

    def __init__(self, levels: int) -> None:
        super().__init__()
        last = nn.Conv2d(_HIDDEN, 1, 1)
        self.layers = nn.Sequential(
            nn.Conv2d(levels + 1 + _POSITION_CHANNELS + 1, _HIDDEN, 1 + 2 * MARGIN),
            nn.GELU(),
            nn.Conv2d(_HIDDEN, _HIDDEN, 3, padding=1),
            nn.GELU(),
            last,
        )
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]

    def forward(self, crops: Mapping[int, Tensor], zoom: Tensor) -> Tensor:
        """Corrected maps: (B,U,V) float32, on the scale of the input maps. Constant maps stay
        constant.

        Args:
            crops: level in px -> (B,U+2,V+2) float32.
            zoom: (B,), see `crops.zoom_of`.
        """
        mean, deviation = _moments(blend(crops, zoom))
        return mean + deviation * self.standard(crops, zoom)

    def standard(self, crops: Mapping[int, Tensor], zoom: Tensor) -> Tensor:
        """The corrected map in units of the blended map's deviation, relative to its mean."""
        blended = _standardised(blend(crops, zoom))
        maps = [_standardised(crops[level]) for level in sorted(crops)] + [blended]
        positions = _positions(blended).unsqueeze(1).expand(-1, len(zoom), -1, -1)
        log_zoom = zoom.log()[:, None, None].expand_as(blended)
        change = self.layers(torch.stack([*maps, *positions, log_zoom], dim=1))
        return _inner(blended) + change[:, 0]


def fit(crops: Mapping[int, Tensor], zoom: Tensor, own: Tensor) -> Correction:
    """Fits a correction to n views on the CPU.

    Each view is also used mirrored. The weights depend neither on the number of threads nor on the
    state of torch's random generator.

    Args:
        crops: level in px -> (n,U+2,V+2) float32.
        zoom: (n,).
        own: (n,U,V), the localizer's maps of the views.
    """
    with _one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Correction(len(crops))
        crops = {level: torch.cat([crop, crop.flip(-1)]) for level, crop in crops.items()}
        zoom, own = zoom.repeat(2), torch.cat([own, own.flip(-1)])
        target = _inner(_standardised(F.pad(own, (MARGIN,) * 4)))
        optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE, weight_decay=_DECAY)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _STEPS)
        for _ in range(_STEPS):
            chosen = torch.randint(len(own), (min(_BATCH, len(own)),))
            some = {level: crop[chosen] for level, crop in crops.items()}
            error = model.standard(some, zoom[chosen]) - target[chosen]
            optimizer.zero_grad()
            error.square().mean().backward()
            optimizer.step()
            schedule.step()
    return model.eval().requires_grad_(False)


def _inner(maps: Tensor) -> Tensor:
    return maps[:, MARGIN:-MARGIN, MARGIN:-MARGIN]


def _moments(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation inside the margin: (B,U+2,V+2) -> (B,1,1), (B,1,1)."""
    inner = _inner(maps)
    mean = inner.mean(dim=(1, 2), keepdim=True)
    deviation = inner.std(dim=(1, 2), keepdim=True, correction=0)
    constant = deviation <= 1e-5 * mean.abs()  # up to rounding
    return mean, torch.where(constant, 0, deviation)


def _standardised(maps: Tensor) -> Tensor:
    mean, deviation = _moments(maps)
    return (maps - mean) / deviation.clamp(min=1e-6)


def _positions(maps: Tensor) -> Tensor:
    """Position features of the cells, the same for mirrored views: (7,U+2,V+2).

    Height; squared distances from the centre; for rows and for columns, whether the cell is at the
    border of the view, and whether it is outside.
    """
    rows, columns = (_along_side(maps.shape[i], maps.device) for i in (1, 2))
    y, x = rows[0][:, None].expand(maps.shape[1:]), columns[0].expand(maps.shape[1:])
    marks = [mark[:, None].expand_as(y) for mark in rows[1:]]
    marks += [mark.expand_as(y) for mark in columns[1:]]
    return torch.stack([y, y.square(), x.square(), *marks])


def _along_side(cells: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Along one side: position in [-1,1] inside the view, at the border, outside; each (cells,)."""
    index = torch.arange(cells, device=device)
    from_border = torch.minimum(index, cells - 1 - index) - MARGIN
    position = (index - MARGIN + 0.5) / (cells - 2 * MARGIN) * 2 - 1
    return position, (from_border == 0).float(), (from_border < 0).float()


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
