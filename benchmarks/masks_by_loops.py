"""Masks written from the papers as loops over images, to compare the time with `salmask.masks`.

Foregrounds are lists of cells, patches are pasted one by one, and blurs are torchvision's. Random
numbers come from the generators of Python and torch.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from salmask.filters import scaled, scaled_kernel
from salmask.shapes import Pair

Cells = list[tuple[int, int]]  # rows and columns of patches


@dataclass
class Loops:
    """Each method masks the whole pair once. Views are square."""

    pair: Pair
    grid: int
    masker: Any = None  # of ADIOS

    @property
    def side(self) -> int:
        return int(self.pair.query.shape[-1])

    # ------------------------------------------------------------------------- Chin et al. 2024

    def high_pass(self) -> object:
        query, key = self.sharpened(self.pair.query), self.sharpened(self.pair.key)
        negative = key.clone()
        for i in range(len(query)):
            self.add_noise(query[i], *self.salient(self.pair.query_activation, i), True)
            self.add_noise(negative[i], *self.salient(self.pair.key_activation, i), False)
        return query, key, negative

    def blur(self) -> object:
        blur = self.gaussian(31, 10.0)
        return self.covered(blur)

    def mean(self) -> object:
        return self.covered(lambda view: view.mean(dim=(1, 2), keepdim=True).expand_as(view))

    def covered(self, fill: Callable[[Tensor], Tensor]) -> object:
        query, negative = self.pair.query.clone(), self.pair.key.clone()
        for i in range(len(query)):
            cells = self.salient(self.pair.query_activation, i)
            ratio = random.uniform(0.05, 0.25)
            self.paste(query[i], fill(query[i]), self.chosen(*cells, ratio, True))
            cells = self.salient(self.pair.key_activation, i)
            ratio = random.uniform(0.4, 0.7)
            self.paste(negative[i], fill(negative[i]), self.chosen(*cells, ratio, False))
        return query, negative

    def salient(self, activation: Tensor | None, i: int) -> tuple[Cells, Cells]:
        """The cells of the foreground and of the background, by falling activation. Eq. 1."""
        assert activation is not None
        values = activation[i].numpy()
        bar = values.mean() - 0.6 * values.std()
        foreground: Cells = []
        background: Cells = []
        for cell in np.argsort(-values.ravel()):
            row, column = divmod(int(cell), self.grid)
            (foreground if values[row, column] >= bar else background).append((row, column))
        return foreground, background

    def chosen(self, foreground: Cells, background: Cells, ratio: float, positive: bool) -> Cells:
        inside = round(ratio * len(foreground))
        cells = random.sample(foreground, inside)
        if positive:
            outside = max(0, round(ratio * self.grid**2) - inside)
            cells += random.sample(background, min(outside, len(background)))
        return cells

    def add_noise(self, view: Tensor, foreground: Cells, background: Cells, positive: bool) -> None:
        noise = torch.randn(view.shape) * (0.18 if positive else 0.14)
        if random.random() < 0.2:
            self.focal(view, noise, 200 if positive else 130, not positive)
            return
        ratio = random.uniform(0.05, 0.25) if positive else random.uniform(0.4, 0.7)
        if random.random() < 0.3:
            self.paste(view, noise, self.chosen(foreground, background, ratio, positive))
            return
        for channel in range(3):
            cells = self.chosen(foreground, background, ratio, positive)
            self.paste(view[channel : channel + 1], noise[channel : channel + 1], cells)

    # ------------------------------------------------------------------------- Jing et al. 2022

    def mscn(self) -> object:
        every = [divmod(cell, self.grid) for cell in range(self.grid**2)]
        views = []
        for images, share in zip(
            (self.pair.query, self.pair.key, *self.pair.extra),
            (0.15, 0.05, 0.15, 0.15),
            strict=True,
        ):
            masked = self.sharpened(images)
            for view in masked:
                noise, number = torch.randn(view.shape) * 0.18, round(share * len(every))
                if random.random() < 0.4:
                    self.focal(view, noise, 200, False)
                elif random.random() < 0.3:
                    self.paste(view, noise, random.sample(every, number))
                else:
                    for channel in range(3):
                        some = slice(channel, channel + 1)
                        self.paste(view[some], noise[some], random.sample(every, number))
            views.append(masked)
        return views

    def focal(self, view: Tensor, noise: Tensor, window: float, inside: bool) -> None:
        length = round(scaled(window, self.side))
        y, x = (random.randint(0, self.side - length) for _ in range(2))
        rows, columns = slice(y, y + length), slice(x, x + length)
        if inside:
            view[:, rows, columns] = noise[:, rows, columns]
        else:
            kept = view[:, rows, columns].clone()
            view.copy_(noise)
            view[:, rows, columns] = kept

    def sharpened(self, images: Tensor) -> Tensor:
        blur = self.gaussian(11, 5.0)
        return torch.stack([view - blur(view) for view in images])

    def gaussian(self, kernel: int, sigma: float) -> Callable[[Tensor], Tensor]:
        from torchvision.transforms import GaussianBlur

        blur: Callable[[Tensor], Tensor] = GaussianBlur(
            scaled_kernel(kernel, self.side), scaled(sigma, self.side)
        )
        return blur

    def paste(self, view: Tensor, filling: Tensor, cells: Cells) -> None:
        patch = self.side // self.grid
        for row, column in cells:
            rows = slice(row * patch, (row + 1) * patch)
            columns = slice(column * patch, (column + 1) * patch)
            view[:, rows, columns] = filling[:, rows, columns]

    # -------------------------------------------------- Vishniakov et al. 2023; Shen et al. 2022

    def mixmask(self) -> object:
        images, pixels = self.pair.query, self.blockwise()
        mixed = torch.empty_like(images)
        for i in range(len(images)):
            mixed[i] = torch.where(pixels, images[i], images[-1 - i])
        return mixed

    def erase(self) -> object:
        images, pixels = self.pair.query, self.blockwise()
        one, other = torch.empty_like(images), torch.empty_like(images)
        for i in range(len(images)):
            one[i], other[i] = images[i] * pixels, images[i] * ~pixels
        return one, other

    def blockwise(self) -> Tensor:
        """Half of the patches, in rectangles: (side, side) bool."""
        mask, total = np.zeros((self.grid, self.grid), bool), round(0.5 * self.grid**2)
        while mask.sum() < total:
            area = random.uniform(1, total - mask.sum() + 1)
            stretch = np.exp(random.uniform(np.log(0.3), np.log(1 / 0.3)))
            sides = (np.sqrt(area * stretch), np.sqrt(area / stretch))
            height, width = (int(min(self.grid, max(1, round(side)))) for side in sides)
            y, x = random.randint(0, self.grid - height), random.randint(0, self.grid - width)
            for row in range(y, y + height):
                for column in range(x, x + width):
                    if mask.sum() < total:
                        mask[row, column] = True
        patch = self.side // self.grid
        return torch.from_numpy(mask.repeat(patch, 0).repeat(patch, 1))

    def unmix(self) -> object:
        images, weight = self.pair.query, random.random()
        mixed = torch.empty_like(images)
        if random.random() < 0.5:
            for i in range(len(images)):
                mixed[i] = weight * images[i] + (1 - weight) * images[-1 - i]
            return mixed
        half = int(self.side * np.sqrt(1 - weight)) // 2
        y, x = (random.randint(0, self.side - 1) for _ in range(2))
        rows, columns = slice(max(0, y - half), y + half), slice(max(0, x - half), x + half)
        for i in range(len(images)):
            mixed[i] = images[i]
            mixed[i, :, rows, columns] = images[-1 - i, :, rows, columns]
        return mixed

    # ------------------------------------------------------------------------- Shi et al. 2022

    @torch.no_grad()
    def adios(self) -> object:
        images = self.pair.query
        masked = torch.empty_like(images)
        for i in range(len(images)):
            masks = self.masker(images[i : i + 1])[0]
            masked[i] = images[i] * (1 - masks[random.randrange(len(masks))])
        return masked
