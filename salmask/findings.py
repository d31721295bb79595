"""The result of one check of `salmask doctor`."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One line of `salmask doctor`.

    Args:
        state: `ok`, `note` (worth a look), or `stop` (a run would fail).
        text: what was checked and what to do.
    """

    state: Literal["ok", "note", "stop"]
    text: str
