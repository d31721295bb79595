"""Detection: the code and the options are in `salmask.detection`."""

from typing import Any

from salmask.evaluate import Evaluation


def run(*arguments: Any, **options: Any) -> dict[str, float]:
    """See `salmask.detection.protocol.run`."""
    from salmask.detection import protocol  # the detector needs torchvision

    return protocol.run(*arguments, **options)


EVALUATION = Evaluation(run, label="detection", own_section=False)
