"""A pretraining run: the common sections with the run's own entries laid over them."""

from dataclasses import dataclass

from salmask.params.encoder import EncoderConfig
from salmask.params.mistakes import Collector
from salmask.params.overlay import run_choice, run_entry, run_section
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
    """The run `name`. Raises UserError with all values that are not allowed."""
    mistakes = Collector()
    with mistakes.part():
        run_entry(params, name)
    with mistakes.part():
        encoder = run_section(params, name, "encoder", EncoderConfig)
    with mistakes.part():
        view = run_section(params, name, "view", ViewConfig)
    with mistakes.part():
        mask = run_choice(params, name, "mask")
    with mistakes.part():
        framework = run_choice(params, name, "framework")
    with mistakes.part():
        train = run_section(params, name, "train", TrainConfig)
    mistakes.stop_if_any()
    return RunConfig(name, encoder, view, mask, framework, train)
