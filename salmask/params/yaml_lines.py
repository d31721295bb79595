"""The lines of a YAML file at which its keys stand, for messages."""

import re
from collections.abc import Iterator
from pathlib import Path

import yaml

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # C: ten times faster than Python
_PLACE = re.compile(r"(?P<file>.+?\.ya?ml): (?P<key>.+?)(?:: |$)")


def with_lines(message: str) -> str:
    """Adds the line number to each line of a message that begins with `FILE.yaml: KEY: `.

    A key that is not in the file has the line of the section in which it is missing.
    """
    numbers: dict[str, dict[str, int]] = {}
    lines = []
    for line in message.split("\n"):
        match = _PLACE.match(line)
        if match:
            file, key = match["file"], match["key"].strip("`")
            if file not in numbers:
                numbers[file] = _numbers(Path(file))
            while key and key not in numbers[file]:
                key = key.rpartition(".")[0]
            if key:
                line = f"{file}, line {numbers[file][key]}{line[len(file) :]}"
        lines.append(line)
    return "\n".join(lines)


def repeated_keys(text: str) -> list[tuple[str, int, int]]:
    """The keys that a mapping has twice: (dotted key, line, earlier line). Raises YAMLError."""
    lines: dict[str, int] = {}
    repeated = []
    for key, line in _keys(yaml.compose(text, Loader=LOADER)):
        if key in lines:
            repeated.append((key, line, lines[key]))
        lines[key] = line
    return repeated


def _numbers(file: Path) -> dict[str, int]:
    try:
        return dict(_keys(yaml.compose(file.read_text(encoding="utf-8-sig"), Loader=LOADER)))
    except (OSError, ValueError, yaml.YAMLError):
        return {}


def _keys(root: yaml.Node | None) -> Iterator[tuple[str, int]]:
    """Every dotted key below a node, with its line. Visits a node with several aliases once."""
    pending, visited = [(root, "")], set()
    while pending:
        node, prefix = pending.pop()
        if not isinstance(node, yaml.MappingNode) or id(node) in visited:
            continue
        visited.add(id(node))
        for key, value in node.value:
            if key.tag == "tag:yaml.org,2002:merge":  # its keys may be given again
                continue
            name = f"{prefix}{key.value}"
            yield name, key.start_mark.line + 1
            pending.append((value, f"{name}."))
