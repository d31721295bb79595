"""Copies the files of a project into the package, where `salmask init` finds them.

In the repository these files exist once, at the top level. All metadata is in pyproject.toml.
"""

import runpy
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

TEMPLATE = runpy.run_path("salmask/commands/template.py")


class BuildWithTemplate(build_py):
    """Builds the package, then copies the project files into it."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return  # `salmask init` then takes the files from the repository
        folder = Path(self.build_lib) / "salmask" / TEMPLATE["FOLDER"]
        for file in TEMPLATE["template_files"](Path()):
            self.mkpath(str((folder / file).parent))
            self.copy_file(str(file), str(folder / file))


setup(cmdclass={"build_py": BuildWithTemplate})
