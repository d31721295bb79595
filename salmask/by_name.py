"""Records that are found by the name of a module: masks, frameworks, data sets and their like.

A package such as `salmask.masks` holds one module per name, and each of these modules defines one
record (`MASK`). No table lists the names, so that a new module changes no other module.
"""

import re
from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


class ByName(Mapping[str, T]):
    """The records of a package by module name; a module is imported when its record is first read.

    Args:
        package: dotted name of the package.
        record: name of the record in each module. Modules that do not define it are helpers.
    """

    def __init__(self, package: str, record: str) -> None:
        self.package, self.record = package, record

    def module(self, name: str) -> str:
        """The dotted name of the module that defines the record `name`."""
        return f"{self.package}.{name}"

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.isidentifier() and self._defines(name)

    def __getitem__(self, name: str) -> T:
        if name not in self:
            raise KeyError(name)
        record: T = getattr(import_module(self.module(name)), self.record)
        return record

    def __iter__(self) -> Iterator[str]:
        names = sorted(path.stem for path in self._folder().glob("*.py"))
        return (name for name in names if self._defines(name))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _folder(self) -> Path:
        package = find_spec(self.package)
        assert package is not None and package.origin is not None
        return Path(package.origin).parent

    def _defines(self, name: str) -> bool:
        path = self._folder() / f"{name}.py"
        return path.is_file() and bool(
            re.search(rf"^(class )?{self.record}\b", path.read_text(encoding="utf-8"), re.MULTILINE)
        )
