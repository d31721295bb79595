"""Evaluation protocols, one module each, found by name."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from salmask.by_name import ByName
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


EVALUATIONS: ByName[Evaluation] = ByName("salmask.evaluate", "EVALUATION")
