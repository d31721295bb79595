"""`salmask check`: validates params.yaml before anything is computed."""

import contextlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from salmask.artifacts import DATA
from salmask.datasets.folder_fingerprint import folder_of
from salmask.datasets.reader import check_root, dataset_reader
from salmask.detection.architecture import check_trunk
from salmask.detection.datasets import configured_reader
from salmask.detection.protocol import training_options
from salmask.encoders import importing
from salmask.errors import UserError
from salmask.evaluate import EVALUATIONS, read_options
from salmask.files import parse_json
from salmask.params.mistakes import Collector, ParamsError, unknown_key
from salmask.params.names import (
    CHOSEN,
    chosen_evaluations,
    import_names,
    protocol_names,
    run_names,
)
from salmask.params.overlay import SECTIONS, in_run
from salmask.params.probe import read_probe
from salmask.params.run import read_run
from salmask.params.saliency import SaliencyConfig
from salmask.params.values import bind, pick
from salmask.params.yaml_file import Params, is_name
from salmask.params.yaml_lines import with_lines
from salmask.provenance import FILE_NAME, find_root
from salmask.report import comparison
from salmask.saliency.localizers import LOCALIZERS
from salmask.train.check_run import check_run


def check_project() -> None:
    """Checks params.yaml of the current project, that its data are there, and its imports.

    Raises:
        UserError: with all values and files that do not fit.
    """
    root = find_root()
    mistakes = Collector()
    with contextlib.chdir(root):  # as for the stages: paths may be relative
        params = Params.read()
        with mistakes.part():
            validate(params)
        for name in _names(params, "imports"):
            with mistakes.part():
                importing.read(*read_import(params, name))
        for key in ("data", *(f"transfer.{name}" for name in _names(params, "transfer"))):
            with mistakes.part():
                check_root(params.choice(key), f"{params.source}: {key}")
        for name in _names(params, "detect"):
            with mistakes.part():
                where = f"{params.source}: detect.{name}.data"
                reader = configured_reader(params.choice(f"detect.{name}.data"), where)
                if isinstance(reader.keywords["root"], Path):
                    folder_of(reader.keywords["root"], f"{where}.root")
        for name in _names(params, "runs"):
            with mistakes.part(), in_run(params, name):
                _check_batch(params, name)
        try:
            mistakes.stop_if_any()
        except ParamsError as error:  # here, where params.yaml is
            raise ParamsError([with_lines(line) for line in error.lines]) from None


def validate(params: Params) -> None:
    """Reads every section in the same way as the stages. Builds no network and reads no data.

    Raises:
        UserError: with all values that do not fit.
    """
    mistakes = Collector()
    with mistakes.part():
        _refuse_unknown_keys(params.values, SECTIONS, f"{params.source}: ")
    with mistakes.part():
        params.seed()
    for key in ("data", *(f"transfer.{name}" for name in _names(params, "transfer"))):
        with mistakes.part():
            dataset_reader(params.choice(key), f"{params.source}: {key}")
    with mistakes.part():
        localizer, where = params.choice("localizer"), f"{params.source}: localizer"
        bind(pick(LOCALIZERS, localizer.name, f"{where}.name"), localizer.options, where)
    with mistakes.part():
        params.section("saliency", SaliencyConfig)
    for section in ("runs", "transfer", "detect"):
        with mistakes.part():
            run_names(params) if section == "runs" else params.names(section)
    for name in _names(params, "runs"):
        with mistakes.part():
            check_run(params, name)
    with mistakes.part():
        read_probe(params)
    with mistakes.part():
        params.raw("imports")  # DVC needs the key, even without entries
        import_names(params)
    for name in _names(params, "imports"):
        with mistakes.part():
            importing.check(*read_import(params, name))
    for name in _names(params, "detect"):
        where = f"{params.source}: detect.{name}"
        with mistakes.part():
            _refuse_unknown_keys(
                params.mapping(f"detect.{name}"), ("data", "training"), f"{where}."
            )
        with mistakes.part():
            configured_reader(params.choice(f"detect.{name}.data"), f"{where}.data")
        with mistakes.part():
            training_options(params.mapping(f"detect.{name}.training"), f"{where}.training")
    _validate_evaluations(params, mistakes)
    with mistakes.part():
        comparison.read_tables(params)
    mistakes.stop_if_any()


def read_import(params: Params, name: str) -> tuple[importing.Import, str]:
    """The entry `imports.NAME`, and its place for error messages. Raises UserError."""
    key = f"imports.{name}"
    return params.section(key, importing.Import), f"{params.source}: {key}"


def _names(params: Params, section: str) -> list[str]:
    """The valid names in a section; none if it is not a mapping."""
    entries = params.value(section)
    return [name for name in entries if is_name(name)] if isinstance(entries, Mapping) else []


def _check_batch(params: Params, name: str) -> None:
    """Raises UserError if a batch needs more images than the manifest has, if there is one of the
    current section `data`."""
    try:
        made_by = parse_json((DATA / FILE_NAME).read_bytes())["params"]
        images = parse_json((DATA / "dataset.json").read_bytes())["images"]["train"]
        batch = read_run(params, name).train.batch
        current = made_by["data"] == params.value("data")
    except (OSError, ValueError, KeyError, TypeError, UserError):
        return
    if current and batch > images:
        raise UserError(
            f"train.batch: {batch} is more than the {images} training images; set a smaller batch"
        )


def _validate_evaluations(params: Params, mistakes: Collector) -> None:
    """Checks the names and options of all evaluations, and that they suit their runs."""
    section = f"{params.source}: evaluate"
    runs: dict[str, list[str]] = {}
    for protocol in CHOSEN:
        with mistakes.part():
            params.raw(f"evaluate.chosen.{protocol}")  # DVC needs each key, even without runs
    with mistakes.part():
        for protocol in protocol_names(params):
            runs[protocol] = []
            if protocol in EVALUATIONS and not EVALUATIONS[protocol].every_run:
                raise UserError(
                    f"{section}.protocols: {protocol} has a stage of its own: list its runs under "
                    f"evaluate.chosen.{protocol} (only a suite may list it here, for all runs)"
                )
    with mistakes.part():
        for run, folders in chosen_evaluations(params).items():
            for folder in folders:
                runs.setdefault(folder.partition("-")[0], []).append(run)
    for run in dict.fromkeys(runs.get("detect", [])):
        with mistakes.part():
            _validate_detector(params, run)
    known = [name for name, evaluation in EVALUATIONS.items() if evaluation.own_section]
    options: Mapping[str, Any] = {}
    with mistakes.part():
        options = params.mapping("evaluate")
        _refuse_unknown_keys(options, ("protocols", "chosen", *known), f"{section}.")
    for protocol in sorted(runs.keys() | (options.keys() & set(known))):
        with mistakes.part():
            evaluation = pick(EVALUATIONS, protocol, f"{section}.protocols")
            if evaluation.own_section:
                read_options(params, protocol, runs.get(protocol, []))


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


def _refuse_unknown_keys(given: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    lines = [f"{where}{key}: {unknown_key(key, list(known))}" for key in given if key not in known]
    if lines:
        raise ParamsError(lines)
