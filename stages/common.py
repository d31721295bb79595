"""What every stage shares: where artifacts lie, and how errors reach a person."""

import functools
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from salmask.errors import InterruptedRunError, NonFiniteLossError, UserError

DATA = Path("artifacts/data")
LOCALIZER = Path("artifacts/localizer")
SALIENCY = Path("artifacts/saliency")
PRETRAIN = Path("artifacts/pretrain")
EVALUATE = Path("artifacts/evaluate")
TRANSFER = Path("artifacts/transfer")
DETECT = Path("artifacts/detect")
REPORT = Path("artifacts/report")

# What later stages read of an artifact, and so depend on: its contents, not its provenance. Code
# that changes without changing what it makes then reruns nothing further down.
MANIFEST_FILES = [DATA / "manifest.csv", DATA / "dataset.json"]
LOCALIZER_SPEC = LOCALIZER / "localizer.json"
LOCALIZER_FILES = [LOCALIZER_SPEC, LOCALIZER / "weights.safetensors"]
STORE = SALIENCY / "saliency.zarr"
ENCODER_FILES = ("encoder.json", "encoder.safetensors")
PROJECTOR = "projector.safetensors"  # beside them; only variance depends on it

MISTAKE, FAILED, STOPPED = 2, 1, 143


def readable_errors(stage: Callable[..., Any]) -> Callable[..., Any]:
    """A user's mistake ends with its message and exit code 2; what a run cannot go on from, with
    1; a stop signal, with 143. Only a bug shows a traceback."""

    @functools.wraps(stage)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
        try:
            return stage(*args, **kwargs)
        except UserError as error:
            _leave(f"error: {error}", MISTAKE)
        except NonFiniteLossError as error:
            _leave(f"error: {error}", FAILED)
        except InterruptedRunError as error:
            _leave(f"stopped: {error}; the same command goes on from there", STOPPED)

    return wrapped


def _leave(message: str, code: int) -> None:
    print(message, file=sys.stderr, flush=True)
    sys.exit(code)
