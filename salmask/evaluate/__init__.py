"""Evaluation protocols, one module each, found by name."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from salmask.by_name import ByName
from salmask.errors import UserError
from salmask.params.values import bind
from salmask.params.yaml_file import Params


@dataclass(frozen=True)
class Evaluation:
    """One protocol, `EVALUATION` of the module that is named after it.

    Args:
        run: (encoders by name, manifest, job, [inputs], *, options) -> metrics by name. Its
            keyword-only arguments are the options in params.yaml. All processes of a job call it.
        label: its name on the report's page and in tables; by default the name of the module.
        main_suffix: of the metrics that the report shows first. The others are in a closed section.
        every_run: whether `evaluate.protocols` may name it, for every run. If false, it has a stage
            of its own in dvc.yaml, for the runs that `evaluate.chosen` names.
        parallel: whether several processes can share the work.
        own_section: whether its options are in `evaluate.<name>` of params.yaml.
        check: (params, names of chosen runs, options) -> None. Raises UserError for options that
            have valid types but do not fit.
    """

    run: Callable[..., dict[str, float]]
    label: str = ""
    main_suffix: str = ""
    every_run: bool = False
    parallel: bool = True
    own_section: bool = True
    check: Callable[[Params, Sequence[str], Mapping[str, Any]], None] = lambda *given: None


def read_options(params: Params, name: str, runs: Sequence[str]) -> dict[str, Any]:
    """The options of a protocol, with defaults filled in.

    Args:
        params: the parameters.
        name: of the protocol, whose section is `evaluate.<name>`.
        runs: the runs that it is chosen for.

    Raises UserError for options that are not allowed or do not fit.
    """
    evaluation, key = EVALUATIONS[name], f"evaluate.{name}"
    options = bind(evaluation.run, params.mapping(key), f"{params.source}: {key}")
    try:  # what only the check reads is not recorded as read
        evaluation.check(Params(params.values, params.source), runs, options)
    except UserError as error:
        text = str(error)
        raise UserError(f"{params.source}: {text}" if text.startswith(key) else text) from None
    return options


EVALUATIONS: ByName[Evaluation] = ByName("salmask.evaluate", "EVALUATION")
