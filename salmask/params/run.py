"""A pretraining run: the common sections with the run's own entries laid over them."""

from dataclasses import dataclass

from salmask.params.encoder import EncoderConfig
from salmask.params.overlay import run_choice, run_section
from salmask.params.train import TrainConfig
from salmask.params.values import Choice
from salmask.params.view import ViewConfig
from salmask.params.yaml_file import Params


@dataclass(frozen=True)
class RunConfig:
    """All parameters of one pretraining run."""

    name: str
    encoder: EncoderConfig
    view: ViewConfig
    mask: Choice
    framework: Choice
    train: TrainConfig


def read_run(params: Params, name: str) -> RunConfig:
    """The run `name`. Raises UserError for the first value that is not allowed."""
    return RunConfig(
        name=name,
        encoder=run_section(params, name, "encoder", EncoderConfig),
        view=run_section(params, name, "view", ViewConfig),
        mask=run_choice(params, name, "mask"),
        framework=run_choice(params, name, "framework"),
        train=run_section(params, name, "train", TrainConfig),
    )
