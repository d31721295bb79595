"""The section `probe:` of params.yaml."""

from pydantic.dataclasses import dataclass

from salmask.params.ranges import AtLeastTwo, PositiveInt
from salmask.params.values import STRICT
from salmask.params.yaml_file import Params


@dataclass(frozen=True, config=STRICT)
class ProbeConfig:
    """Options of `probe:`, the measurements during pretraining. They decide no result.

    Args:
        every: number of epochs between two measurements. There is always one before the first epoch
            and one after the last.
        images: the largest number of images of each split that are measured.
    """

    every: PositiveInt = 5
    images: AtLeastTwo = 2000


def read_probe(params: Params) -> ProbeConfig | None:
    """The section `probe`; None without one. Does not count as reading it, so that no fingerprint
    depends on it. Raises UserError."""
    if params.values.get("probe") is None:
        return None
    return Params(params.values, params.source).section("probe", ProbeConfig)
