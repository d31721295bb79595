"""Whether all of params.yaml fits together, before anything is computed by it."""

import contextlib
from collections.abc import Mapping
from typing import Any

import torch

from salmask import frameworks
from salmask.commands.grids import refuse_grids
from salmask.datasets.reader import dataset_reader
from salmask.detection.architecture import check_trunk
from salmask.detection.datasets import configured_reader
from salmask.detection.options import training_options
from salmask.encoders import importing
from salmask.encoders.backbones import check_encoder
from salmask.errors import UserError
from salmask.evaluate import EVALUATIONS
from salmask.masks.ready import build as build_mask
from salmask.params.names import CHOSEN, chosen_evaluations, import_names, run_names
from salmask.params.overlay import RUN_SECTIONS, run_seed
from salmask.params.run import read_run
from salmask.params.saliency import SaliencyConfig
from salmask.params.values import Choice, bind, pick
from salmask.params.yaml_file import Params
from salmask.provenance import find_root
from salmask.report import comparison
from salmask.saliency import localizers

_SECTIONS = (
    *("seed", "data", "localizer", "saliency", *RUN_SECTIONS, "runs"),
    *("tables", "sweeps", "imports", "transfer", "detect", "evaluate"),
)


def check_project() -> None:
    """Checks params.yaml of the current project and the files of its imports.

    Raises:
        UserError: for the first value or file that does not fit.
    """
    root = find_root()
    params = Params.read(root / "params.yaml")
    validate(params)
    with contextlib.chdir(root):  # as for the stages: paths may be relative
        for name in import_names(params):
            importing.read(*entry(params, name))


def validate(params: Params) -> None:
    """Reads every section as the stages will. Raises UserError at the first that does not fit.

    Images and weights are not looked at, but for what a name says of them.
    """
    _refuse_unknown(params.values, _SECTIONS, params.source)
    dataset_reader(params.choice("data"), f"{params.source}: data")
    localizer = params.choice("localizer")
    bind(
        pick(localizers.LOCALIZERS, localizer, "localizer"),
        localizer,
        f"{params.source}: localizer",
    )
    params.section("saliency", SaliencyConfig)
    refuse_grids(params)
    for name in run_names(params):
        run = read_run(params, name)
        try:
            check_encoder(run.encoder)
            wiring = frameworks.wiring_of(run.framework, run.train.batch)
            with torch.device("meta"):  # a learned mask has a network
                build_mask(run.mask, wiring, run.view)
        except UserError as error:
            raise UserError(f"{params.source}: runs.{name}: {error}") from None
        run_seed(params, name)
    params.raw("imports")  # DVC looks for it, even if it names nothing
    for name in import_names(params):
        importing.check(*entry(params, name))
    _validate_evaluations(params)
    comparison.read_tables(params)


def entry(params: Params, name: str) -> tuple[importing.Import, str]:
    """What `imports.NAME` says, and where that stands."""
    key = f"imports.{name}"
    return params.section(key, importing.Import), f"{params.source}: {key}"


def _validate_evaluations(params: Params) -> None:
    for name in params.section("transfer", dict[str, Any]):
        dataset_reader(params.choice(f"transfer.{name}"), f"{params.source}: transfer.{name}")
    for name in params.section("detect", dict[str, Any]):
        configured_reader(params, f"detect.{name}")
        training_options(params.choice(f"detect.{name}"), f"{params.source}: detect.{name}")
    everywhere, chosen = params.section("evaluate.protocols", list[str]), chosen_evaluations(params)
    for protocol in CHOSEN:
        params.raw(f"evaluate.chosen.{protocol}")  # DVC looks for each, even if it names nothing
    for protocol in everywhere:
        if protocol in EVALUATIONS and not EVALUATIONS[protocol].every_run:
            raise UserError(
                f"{params.source}: evaluate.protocols: {protocol} has a stage of its own: list the "
                f"runs that it is for under evaluate.chosen.{protocol} (a suite may say it here, "
                "for all)"
            )
    for name, folders in chosen.items():
        if any(folder.startswith("detect-") for folder in folders):
            _validate_trunk(params, name)
    runs_of: dict[str, list[str]] = {protocol: [] for protocol in everywhere}
    for name, folders in chosen.items():
        for folder in folders:
            runs_of.setdefault(folder.partition("-")[0], []).append(name)
    sections = params.section("evaluate", dict[str, Any])
    known = [name for name, evaluation in EVALUATIONS.items() if evaluation.own_section]
    _refuse_unknown(sections, ("protocols", "chosen", *known), f"{params.source}: evaluate")
    for protocol in sorted(runs_of.keys() | (sections.keys() & set(known))):
        choice = Choice(protocol, {})
        evaluation = pick(EVALUATIONS, choice, f"{params.source}: evaluate")
        if evaluation.own_section:
            key = f"evaluate.{protocol}"
            choice = Choice(protocol, params.section(key, dict[str, Any]))
            options = bind(evaluation.run, choice, key)
            evaluation.check(params, runs_of.get(protocol, []), options)


def _validate_trunk(params: Params, name: str) -> None:
    """Whether a detector can be built around the encoder of a run or import."""
    if name in import_names(params):
        encoder = entry(params, name)[0].encoder
    else:
        encoder = read_run(params, name).encoder
    try:
        check_trunk(encoder)
    except UserError as error:
        raise UserError(f"{params.source}: evaluate.chosen.detect: {name}: {error}") from None


def _refuse_unknown(given: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in given:
        if key not in known:
            raise UserError(f"{where}: `{key}` is read by nothing (what is: {', '.join(known)})")
