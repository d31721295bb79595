"""Comparison of nested states, such as the contents of two checkpoints."""

from typing import Any

from torch import Tensor, equal


def leaves(state: Any, path: str = "") -> dict[str, Any]:
    """All leaves of nested dictionaries and lists, by path."""
    if isinstance(state, dict):
        parts = list(state.items())
    elif isinstance(state, list | tuple):
        parts = list(enumerate(state))
    else:
        return {path: state}
    return {k: v for name, part in parts for k, v in leaves(part, f"{path}/{name}").items()}


def differences(a: Any, b: Any) -> list[str]:
    """The paths where two states differ, bit for bit, or that only one of them has."""
    ours, theirs = leaves(a), leaves(b)
    both = ours.keys() & theirs.keys()
    return sorted(ours.keys() ^ theirs.keys()) + [
        path
        for path in ours
        if path in both
        and not (
            equal(ours[path], theirs[path])
            if isinstance(ours[path], Tensor)
            else ours[path] == theirs[path]
        )
    ]
