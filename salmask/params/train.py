"""The section `train:` of params.yaml."""

from typing import Literal

from pydantic.dataclasses import dataclass

from salmask.params.ranges import Milestones, Momentum, NonNegative, NonNegativeInt, PositiveInt
from salmask.params.values import STRICT


@dataclass(frozen=True, config=STRICT)
class TrainConfig:
    """Options of `train:`.

    Args:
        epochs: number of epochs; 0 for an untrained encoder, the baseline "from scratch".
        warmup_epochs: length of the linear warm-up.
        batch: global batch size.
        optimizer: `sgd`, `lars`, `adam` or `adamw`.
        schedule: of the learning rate after the warm-up. `step` multiplies it by `gamma` at the
            start of every epoch in `milestones`. Warm-up and cosine change it every step.
        milestones: epochs of the schedule `step`.
        gamma: factor of the schedule `step`.
        lr: peak learning rate, for this batch size.
        momentum: of SGD and LARS, below 1.
        weight_decay: L2 penalty; for adamw, decoupled weight decay.
        precision: `auto` is bfloat16 on CUDA and float32 elsewhere.
        compile: whether to compile encoders and heads with `torch.compile`. On a CPU this needs a
            C++ compiler. Results differ from those without it by rounding.
        deterministic: whether to use PyTorch's deterministic algorithms only, so that a GPU
            computes the same bytes again.
        images: `auto` keeps decoded images in memory if they fit, and gives the same views as
            `stream`, which decodes them every epoch; `resident` keeps them on the device.
    """

    epochs: NonNegativeInt = 200
    warmup_epochs: NonNegative = 10
    batch: PositiveInt = 128
    optimizer: Literal["sgd", "lars", "adam", "adamw"] = "sgd"
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    milestones: Milestones = ()
    gamma: NonNegative = 0.1
    lr: NonNegative = 0.015
    momentum: Momentum = 0.9
    weight_decay: NonNegative = 1e-4
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: bool = False
    deterministic: bool = False
    images: Literal["auto", "stream", "resident"] = "auto"

    def __post_init__(self) -> None:
        if not self.epochs:
            return  # nothing is trained, so no schedule has to fit
        if self.warmup_epochs > self.epochs:
            raise ValueError(
                f"warmup_epochs {self.warmup_epochs:g} is longer than the training "
                f"(epochs {self.epochs})"
            )
        epochs = list(self.milestones)
        if self.schedule == "step" and not epochs:
            raise ValueError("schedule step needs milestones: the epochs where the rate drops")
        if self.schedule != "step" and epochs:
            raise ValueError(f"milestones {epochs} need schedule: step, not {self.schedule}")
        if max(epochs, default=0) >= self.epochs:
            raise ValueError(f"milestones must stay below epochs {self.epochs}, got {epochs}")
