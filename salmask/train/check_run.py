"""Checks of a run before it trains: its values, and whether they fit together."""

import torch

from salmask import frameworks
from salmask.encoders.backbones import check_encoder
from salmask.masks.options import options_of
from salmask.masks.wiring import wire_mask
from salmask.params.mistakes import Collector
from salmask.params.overlay import in_run, run_choice, run_seed
from salmask.params.run import RunConfig, read_run
from salmask.params.yaml_file import Params


def check_run(params: Params, name: str) -> RunConfig:
    """The run `name`. Builds no network, except that of a learned mask, from shapes alone.

    Raises UserError with all mistakes of the run.
    """
    mistakes = Collector()
    with mistakes.part():
        run_seed(params, name)
    config, wiring = None, None
    with mistakes.part():
        config = read_run(params, name)
    with mistakes.part(), in_run(params, name):
        options_of(run_choice(params, name, "mask"))
    with mistakes.part(), in_run(params, name):
        frameworks.framework_and_options(run_choice(params, name, "framework"))
    if config:
        with mistakes.part(), in_run(params, name):
            check_encoder(config.encoder)
        with mistakes.part(), in_run(params, name):
            wiring = frameworks.wiring_of(config.framework, config.train.batch)
    if config and wiring:
        with mistakes.part(), in_run(params, name), torch.device("meta"):
            wire_mask(config.mask, wiring, config.view)
    mistakes.stop_if_any()
    assert config is not None
    return config
