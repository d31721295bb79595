"""Published learning-rate schedules for training a detector."""

from bisect import bisect_right
from dataclasses import dataclass, replace
from typing import Any

from salmask.errors import UserError
from salmask.params.mistakes import did_you_mean


@dataclass(frozen=True)
class DetectorRecipe:
    """The schedule of a detector's training.

    Args:
        iterations: number of optimizer steps.
        milestones: iterations at which the rate is multiplied by 0.1.
        short_sides: px; one of them is drawn for each image.
        warmup: iterations of the linear warm-up.
        lr: rate after the warm-up.
        batch: images of all processes.
        warmup_factor: share of `lr` at which the warm-up begins.
        momentum: of SGD.
        weight_decay: of all weights except those of batch norms.
    """

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
        progress = iteration / self.warmup
        return rate * (self.warmup_factor * (1 - progress) + progress)


_VOC = DetectorRecipe(24_000, (18_000, 22_000), tuple(range(480, 801, 32)), warmup=100)
_COCO = DetectorRecipe(90_000, (60_000, 80_000), tuple(range(640, 801, 32)), warmup=1000)

# He et al. 2020 (MoCo), Sec. 4.2; `mscn_`: Jing et al. 2022, App. A.4
RECIPES = {
    "voc": _VOC,
    "coco_1x": _COCO,
    "coco_2x": replace(_COCO, iterations=180_000, milestones=(120_000, 160_000)),
    "mscn_voc": replace(_VOC, lr=0.085, warmup=1000, warmup_factor=0.333),
    "mscn_coco": replace(_COCO, lr=0.05, warmup_factor=0.333),
}

# The options that replace a recipe's values.
REPLACEABLE = ("iterations", "milestones", "batch", "lr", "warmup", "warmup_factor", "short_sides")


def resolved(name: str, scale_lr: bool = False, **changes: Any) -> DetectorRecipe:
    """A published recipe with some values replaced.

    Args:
        name: a key of RECIPES.
        scale_lr: multiply the rate by batch / published batch.
        **changes: new values; None keeps the published value.

    Raises:
        UserError: there is no such recipe, or the values do not fit together.
    """
    if name not in RECIPES:
        raise UserError(
            f"recipe: no `{name}` here; choose from {', '.join(RECIPES)}"
            f"{did_you_mean(name, RECIPES)}"
        )
    published = RECIPES[name]
    recipe = replace(published, **{key: v for key, v in changes.items() if v is not None})
    milestones = list(recipe.milestones)
    if milestones != sorted(set(milestones)) or recipe.iterations <= max(milestones, default=0):
        raise UserError(
            f"milestones: {milestones} must increase and be smaller than iterations "
            f"({recipe.iterations}): set both"
        )
    if scale_lr:
        recipe = replace(recipe, lr=recipe.lr * recipe.batch / published.batch)
    return recipe
