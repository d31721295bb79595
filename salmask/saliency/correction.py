"""Brings a crop of cached maps closer to the map that the view itself would have.

In the view, context beyond its rim is gone, the network's padding begins there, and things stand
at another scale. What that does to a map is much the same for all images, so a thousand views
with maps of their own teach it to a small network, fitted once per store.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from salmask.saliency.crops import blend

MARGIN = 1  # cells of context that the network reads around a view
_HIDDEN, _STEPS, _BATCH, _RATE, _DECAY = 32, 600, 256, 3e-3, 0.05
_PLACES = 7


class Correction(nn.Module):
    """Adds to the blended map what it makes of every level's crop, of where a cell lies in the
    view, and of the zoom. Untrained, it adds nothing."""

    def __init__(self, levels: int) -> None:
        super().__init__()
        last = nn.Conv2d(_HIDDEN, 1, 1)
        self.layers = nn.Sequential(
            nn.Conv2d(levels + 1 + _PLACES + 1, _HIDDEN, 1 + 2 * MARGIN),
            nn.GELU(),
            nn.Conv2d(_HIDDEN, _HIDDEN, 3, padding=1),
            nn.GELU(),
            last,
        )
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]

    def forward(self, crops: Mapping[int, Tensor], zoom: Tensor) -> Tensor:
        """crops: level in px -> (B,U+2,V+2) float32. zoom: (B,). Returns (B,U,V) float32, in the
        units of the maps; where they are constant, so is the result."""
        mean, deviation = _moments(blend(crops, zoom))
        return mean + deviation * self.standard(crops, zoom)

    def standard(self, crops: Mapping[int, Tensor], zoom: Tensor) -> Tensor:
        """The same with mean 0 and deviation 1 where nothing is added."""
        blended = _standardised(blend(crops, zoom))
        maps = [_standardised(crops[level]) for level in sorted(crops)] + [blended]
        around = _places(blended).unsqueeze(1).expand(-1, len(zoom), -1, -1)
        near = zoom.log()[:, None, None].expand_as(blended)
        change = self.layers(torch.stack([*maps, *around, near], dim=1))
        return _inner(blended) + change[:, 0]


def fit(crops: Mapping[int, Tensor], zoom: Tensor, own: Tensor) -> Correction:
    """Learns from n views: crops as in `Correction`, zoom (n,), own maps (n,U,V), on the CPU.

    Every view also serves mirrored. The same input gives the same weights, whatever the number
    of threads.
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
    """Mean and deviation inside the margin: (B,U+2,V+2) -> twice (B,1,1)."""
    inner = _inner(maps)
    mean = inner.mean(dim=(1, 2), keepdim=True)
    deviation = inner.std(dim=(1, 2), keepdim=True, correction=0)
    constant = deviation <= 1e-5 * mean.abs()  # but for rounding
    return mean, torch.where(constant, 0, deviation)


def _standardised(maps: Tensor) -> Tensor:
    mean, deviation = _moments(maps)
    return (maps - mean) / deviation.clamp(min=1e-6)


def _places(maps: Tensor) -> Tensor:
    """What tells a cell where it lies, margin included, alike for mirrored views: (7,U+2,V+2).

    Height; squared distances from the middle; whether it is an outermost row or column of the
    view; whether it lies beyond.
    """
    rows, columns = (_along(maps.shape[i], maps.device) for i in (1, 2))
    y, x = rows[0][:, None].expand(maps.shape[1:]), columns[0].expand(maps.shape[1:])
    marks = [mark[:, None].expand_as(y) for mark in rows[1:]]
    marks += [mark.expand_as(y) for mark in columns[1:]]
    return torch.stack([y, y.square(), x.square(), *marks])


def _along(cells: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Along one side: position in [-1,1] inside the view, outermost, beyond; each (cells,)."""
    index = torch.arange(cells, device=device)
    from_rim = torch.minimum(index, cells - 1 - index) - MARGIN
    place = (index - MARGIN + 0.5) / (cells - 2 * MARGIN) * 2 - 1
    return place, (from_rim == 0).float(), (from_rim < 0).float()


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
