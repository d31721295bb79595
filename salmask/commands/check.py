"""`salmask check`: validates params.yaml before anything is computed."""

import contextlib
from collections.abc import Mapping
from typing import Any

import torch

from salmask import frameworks
from salmask.commands.grids import refuse_grids
from salmask.datasets.reader import dataset_reader
from salmask.detection.architecture import check_trunk
from salmask.detection.datasets import configured_reader
from salmask.detection.protocol import training_options
from salmask.encoders import importing
from salmask.encoders.backbones import check_encoder
from salmask.errors import UserError
from salmask.evaluate import EVALUATIONS
from salmask.masks.wiring import wire_mask
from salmask.params.names import CHOSEN, chosen_evaluations, import_names, run_names
from salmask.params.overlay import SECTIONS, run_seed
from salmask.params.probe import read_probe
from salmask.params.run import read_run
from salmask.params.saliency import SaliencyConfig
from salmask.params.values import Choice, bind, pick
from salmask.params.yaml_file import Params
from salmask.provenance import find_root
from salmask.report import comparison
from salmask.saliency.localizers import LOCALIZERS


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
            importing.read(*read_import(params, name))


def validate(params: Params) -> None:
    """Reads every section in the same way as the stages. Builds no network and reads no data.

    Raises:
        UserError: for the first value that does not fit.
    """
    _refuse_unknown_keys(params.values, SECTIONS, params.source)
    dataset_reader(params.choice("data"), f"{params.source}: data")
    localizer, where = params.choice("localizer"), f"{params.source}: localizer"
    bind(pick(LOCALIZERS, localizer, where), localizer, where)
    params.section("saliency", SaliencyConfig)
    refuse_grids(params)
    for name in run_names(params):
        _validate_run(params, name)
    read_probe(params)
    params.raw("imports")  # DVC needs the key, even without entries
    for name in import_names(params):
        importing.check(*read_import(params, name))
    for name in params.names("transfer"):
        dataset_reader(params.choice(f"transfer.{name}"), f"{params.source}: transfer.{name}")
    for name in params.names("detect"):
        where = f"{params.source}: detect.{name}"
        _refuse_unknown_keys(params.mapping(f"detect.{name}"), ("data", "training"), where)
        configured_reader(params.choice(f"detect.{name}.data"), f"{where}.data")
        training_options(params.mapping(f"detect.{name}.training"), f"{where}.training")
    _validate_evaluations(params)
    comparison.read_tables(params)


def read_import(params: Params, name: str) -> tuple[importing.Import, str]:
    """The entry `imports.NAME`, and its place for error messages. Raises UserError."""
    key = f"imports.{name}"
    return params.section(key, importing.Import), f"{params.source}: {key}"


def _validate_run(params: Params, name: str) -> None:
    run = read_run(params, name)
    run_seed(params, name)
    try:
        check_encoder(run.encoder)
        wiring = frameworks.wiring_of(run.framework, run.train.batch)
        with torch.device("meta"):  # a learned mask has a network
            wire_mask(run.mask, wiring, run.view)
    except UserError as error:
        raise UserError(f"{params.source}: runs.{name}: {error}") from None


def _validate_evaluations(params: Params) -> None:
    """Checks the names and options of all evaluations, and that they suit their runs."""
    section = f"{params.source}: evaluate"
    protocols = params.section("evaluate.protocols", list[str])
    for protocol in CHOSEN:
        params.raw(f"evaluate.chosen.{protocol}")  # DVC needs each key, even without runs
    for protocol in protocols:
        if protocol in EVALUATIONS and not EVALUATIONS[protocol].every_run:
            raise UserError(
                f"{section}.protocols: {protocol} has a stage of its own: list its runs under "
                f"evaluate.chosen.{protocol} (only a suite may list it here, for all runs)"
            )
    runs: dict[str, list[str]] = {protocol: [] for protocol in protocols}
    for run, folders in chosen_evaluations(params).items():
        for folder in folders:
            runs.setdefault(folder.partition("-")[0], []).append(run)
    for run in dict.fromkeys(runs.get("detect", [])):
        _validate_detector(params, run)
    options = params.section("evaluate", dict[str, Any])
    known = [name for name, evaluation in EVALUATIONS.items() if evaluation.own_section]
    _refuse_unknown_keys(options, ("protocols", "chosen", *known), section)
    for protocol in sorted(runs.keys() | (options.keys() & set(known))):
        evaluation = pick(EVALUATIONS, Choice(protocol, {}), section)
        if evaluation.own_section:
            key = f"evaluate.{protocol}"
            choice = Choice(protocol, params.section(key, dict[str, Any]))
            evaluation.check(params, runs.get(protocol, []), bind(evaluation.run, choice, key))


def _validate_detector(params: Params, name: str) -> None:
    """Raises UserError when no detector can be built around the encoder of a run or import."""
    if name in import_names(params):
        encoder = read_import(params, name)[0].encoder
    else:
        encoder = read_run(params, name).encoder
    try:
        check_trunk(encoder)
    except UserError as error:
        raise UserError(f"{params.source}: evaluate.chosen.detect: {name}: {error}") from None


def _refuse_unknown_keys(given: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in given:
        if key not in known:
            raise UserError(f"{where}: no such key `{key}` (allowed: {', '.join(known)})")
