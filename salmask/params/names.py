"""The names in params.yaml: runs, imports, and the evaluations that are chosen for them."""

from collections.abc import Mapping
from dataclasses import fields

from pydantic.dataclasses import dataclass

from salmask.errors import UserError
from salmask.params.values import STRICT
from salmask.params.yaml_file import Params


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
        raise UserError(f"{params.source}: `runs` must name at least one pretraining run")
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
    for protocol, names in folders.items():
        for run in getattr(chosen, protocol):
            if run not in evaluations:
                known = ", ".join(evaluations)
                raise UserError(f"{where}.{protocol}: no run {run!r}; there are: {known}")
            if "variance" in protocol and run in imported:
                raise UserError(
                    f"{where}.{protocol}: {run} is imported: its views and its head are not known "
                    "here"
                )
            evaluations[run] += names
    return evaluations


def evaluation_folders(params: Params) -> dict[str, list[str]]:
    """For every run and import, the folders of all its evaluations: the common ones first."""
    protocols = params.section("evaluate.protocols", list[str])
    return {run: [*protocols, *folders] for run, folders in chosen_evaluations(params).items()}
