"""The names in params.yaml: runs, imports, and the evaluations that are chosen for them."""

import re
from collections.abc import Mapping
from dataclasses import fields

from pydantic.dataclasses import dataclass

from salmask.errors import UserError
from salmask.params.mistakes import ParamsError, did_you_mean, shown
from salmask.params.values import STRICT
from salmask.params.yaml_file import Params

_PROTOCOL = re.compile(r"[a-z0-9_]+")


@dataclass(frozen=True, config=STRICT)
class Chosen:
    """Names of the runs that each evaluation under `evaluate.chosen` is made for.

    variance_through: runs whose encoders also measure the views of the runs of `variance`.
    """

    linear: tuple[str, ...] = ()
    finetune: tuple[str, ...] = ()
    transfer: tuple[str, ...] = ()
    detect: tuple[str, ...] = ()
    variance: tuple[str, ...] = ()
    variance_through: tuple[str, ...] = ()


CHOSEN = tuple(field.name for field in fields(Chosen))


def run_names(params: Params) -> list[str]:
    """The names under `runs`, in order. Raises UserError when there is neither run nor import."""
    runs = params.raw("runs")
    if not isinstance(runs, Mapping) or not (runs or params.values.get("imports")):
        raise UserError(f"{params.source}: runs: must name at least one pretraining run")
    return params.names("runs")


def import_names(params: Params) -> list[str]:
    """The names under `imports`, in order. Raises UserError for a name that is also a run's."""
    imports = params.names("imports") if "imports" in params.values else []
    for name in imports:
        if name in run_names(params):
            raise UserError(
                f"{params.source}: imports.{name}: there is a run of this name already; both "
                f"would be artifacts/pretrain/{name}"
            )
    return imports


def protocol_names(params: Params) -> list[str]:
    """The names under `evaluate.protocols`. Raises UserError for one that is no module's name,
    because DVC uses it in command lines."""
    names = params.section("evaluate.protocols", list[str])
    lines = [
        f"{params.source}: evaluate.protocols: {shown(name)} is not the name of a protocol: it is "
        "made of a-z, 0-9 and _"
        for name in names
        if not _PROTOCOL.fullmatch(name)
    ]
    repeated = {name for name in names if names.count(name) > 1}
    lines += [f"{params.source}: evaluate.protocols: {name} is there twice" for name in repeated]
    if lines:
        raise ParamsError(lines)
    return names


def chosen_evaluations(params: Params) -> dict[str, list[str]]:
    """For every run and import, the folders of the evaluations that are chosen for it.

    A folder is named after its protocol: linear, transfer-<dataset>, detect-<dataset>,
    variance-<run whose encoder it is>. Raises UserError for a name that is not a run.
    """
    where = f"{params.source}: evaluate.chosen"
    chosen = params.section("evaluate.chosen", Chosen)
    datasets = {key: [f"-{name}" for name in params.names(key)] for key in ("transfer", "detect")}
    imported = import_names(params)
    evaluations: dict[str, list[str]] = {name: [] for name in [*run_names(params), *imported]}
    folders = {
        protocol: [f"{protocol}{suffix}" for suffix in datasets.get(protocol, [""])]
        for protocol in CHOSEN
    }
    folders["variance"] += [f"variance-{name}" for name in chosen.variance_through]
    folders["variance_through"] = []
    lines = []
    for protocol, names in folders.items():
        runs = getattr(chosen, protocol)
        for run in runs:
            place = f"{where}.{protocol}"
            if run not in evaluations:
                known = f"; there are: {', '.join(evaluations)}{did_you_mean(run, evaluations)}"
                lines.append(f"{place}: no run {shown(run)}{known}")
            elif "variance" in protocol and run in imported:
                lines.append(
                    f"{place}: {run} is imported: its views and its head are not known here"
                )
            elif runs.count(run) > 1:
                lines.append(f"{place}: {run} is there twice")
            else:
                evaluations[run] += names
    if lines:
        raise ParamsError(list(dict.fromkeys(lines)))
    return evaluations


def evaluation_folders(params: Params) -> dict[str, list[str]]:
    """For every run and import, the folders of all its evaluations: the common ones first."""
    protocols = protocol_names(params)
    return {run: [*protocols, *folders] for run, folders in chosen_evaluations(params).items()}
