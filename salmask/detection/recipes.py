"""How long and at which rate a detector is trained, as published."""

from bisect import bisect_right
from dataclasses import dataclass, replace
from typing import Any

from salmask.errors import UserError


@dataclass(frozen=True)
class Recipe:
    """lr: its peak, times .1 at each of the milestones (iterations), after a linear warm-up of
    `warmup` iterations from `warmup_factor` of it. batch: images. short_sides: px, one of them is
    drawn for each image."""

    iterations: int
    milestones: tuple[int, ...]
    short_sides: tuple[int, ...]
    warmup: int
    lr: float = 0.02
    batch: int = 16
    warmup_factor: float = 0.001
    momentum: float = 0.9
    weight_decay: float = 1e-4

    def rate(self, iteration: int) -> float:
        """The learning rate at an iteration, counted from 0."""
        rate = self.lr * 0.1 ** bisect_right(self.milestones, iteration)
        if iteration >= self.warmup:
            return rate
        done = iteration / self.warmup
        return rate * (self.warmup_factor * (1 - done) + done)


_VOC = Recipe(24_000, (18_000, 22_000), tuple(range(480, 801, 32)), warmup=100)
_COCO = Recipe(90_000, (60_000, 80_000), tuple(range(640, 801, 32)), warmup=1000)

# He et al. 2020 (MoCo), Sec. 4.2; `mscn_`: Jing et al. 2022
RECIPES = {
    "voc": _VOC,
    "coco_1x": _COCO,
    "coco_2x": replace(_COCO, iterations=180_000, milestones=(120_000, 160_000)),
    "mscn_voc": replace(_VOC, lr=0.085, warmup_factor=0.333),
    "mscn_coco": replace(_COCO, lr=0.05, warmup_factor=0.333),
}

# What may take the place of a recipe's own.
CHANGES = ("iterations", "milestones", "batch", "lr", "warmup", "warmup_factor", "short_sides")


def adapted(name: str, scale_lr: bool = False, **changes: Any) -> Recipe:
    """The recipe with the changes that are not None. scale_lr: its rate times batch / its own.
    Raises UserError for what does not fit."""
    if name not in RECIPES:
        raise UserError(f"recipe: no `{name}` here; choose from {', '.join(RECIPES)}")
    published = RECIPES[name]
    recipe = replace(published, **{key: v for key, v in changes.items() if v is not None})
    if min(recipe.batch, recipe.iterations, *recipe.short_sides) < 1:
        raise UserError("batch, iterations and short_sides must be positive")
    steps = list(recipe.milestones)
    if steps != sorted(set(steps)) or recipe.iterations <= max(steps, default=0):
        raise UserError(
            f"milestones {steps} must grow and lie below the {recipe.iterations} iterations: "
            "give both"
        )
    if scale_lr:
        recipe = replace(recipe, lr=recipe.lr * recipe.batch / published.batch)
    return recipe
