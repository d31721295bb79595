"""Appends the name of every module of ours that a process imports to the file SALMASK_IMPORTS.

Python runs this file at start-up when its folder is on PYTHONPATH. Each line is a process id and a
module. Forked processes, such as a DataLoader's workers, are covered too.
"""

import os
import sys


def _record(event: str, arguments: tuple[object, ...]) -> None:
    if event == "import" and str(arguments[0]).split(".")[0] in ("salmask", "stages"):
        line = f"{' '.join(sys.orig_argv[1:])}\t{arguments[0]}\n"
        with open(os.environ["SALMASK_IMPORTS"], "a") as stream:  # noqa: PTH123 (at start-up)
            stream.write(line)


if "SALMASK_IMPORTS" in os.environ:
    sys.addaudithook(_record)
