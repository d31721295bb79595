"""The folder for temporary files, whose path must be short enough for sockets."""

import os
import tempfile
from pathlib import Path

from salmask.errors import UserError

_LONGEST = 75  # bytes: a socket's path has 107 at most, and workers add up to 32
_SHORT = Path("/tmp")


def use_short_temporary_folder() -> None:
    """Lets this process use /tmp if the path of its temporary folder is too long.

    Processes that decode images pass tensors on through sockets in this folder.

    Raises:
        UserError: if the path is too long and /tmp cannot be used.
    """
    folder = tempfile.gettempdir()
    if len(os.fsencode(folder)) <= _LONGEST:
        return
    if not os.access(_SHORT, os.W_OK | os.X_OK):
        raise UserError(
            f"the path of the temporary folder is longer than {_LONGEST} bytes, which is too long "
            f"for sockets: set TMPDIR to a folder with a shorter path (it is {folder})"
        )
    tempfile.tempdir = str(_SHORT)
