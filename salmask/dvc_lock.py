"""What dvc.lock records of the stages: a second record of outputs and parameters, made by DVC."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from salmask.errors import UserError
from salmask.params.yaml_file import load_yaml


@dataclass(frozen=True)
class LockedStage:
    """The entry of a stage.

    Args:
        outs: the digest of each output (see `dvc_md5`), by path.
        params: the values from params.yaml, by dotted key.
    """

    outs: Mapping[str, str]
    params: Mapping[str, Any]


def read_lock(root: Path) -> list[LockedStage]:
    """The entry of every stage in dvc.lock; none if the project in `root` has no dvc.lock.

    Raises UserError for a file that DVC did not write.
    """
    file = root / "dvc.lock"
    try:
        content = load_yaml(file.read_text(encoding="utf-8"))
        return [_stage(entry) for entry in content["stages"].values()]
    except FileNotFoundError:
        return []
    except (yaml.YAMLError, TypeError, KeyError, AttributeError, ValueError, RecursionError):
        raise UserError(
            f"{file} cannot be read: restore it with `git checkout dvc.lock`, or delete it and "
            "run `dvc repro`, which takes finished results from runs/"
        ) from None


def _stage(entry: Mapping[str, Any]) -> LockedStage:
    """Raises KeyError, TypeError, ValueError or AttributeError for an entry of another form."""
    outs = {str(out["path"]): str(out["md5"]) for out in entry.get("outs", [])}
    return LockedStage(outs, dict(entry.get("params", {}).get("params.yaml", {})))


def remove_empty_lock(root: Path) -> str:
    """Removes a dvc.lock of 0 bytes, which DVC cannot read. Returns what was done, or "".

    DVC leaves such a file when it is interrupted while it writes.
    """
    file = root / "dvc.lock"
    if not file.is_file() or file.stat().st_size:
        return ""
    file.unlink()
    return (
        f"{file} was empty, because DVC was interrupted while it wrote it, and has been removed. "
        "Restore its last version with `git checkout dvc.lock` if you committed one; else "
        "`dvc repro` takes finished results from runs/"
    )


def differences(
    stages: Sequence[LockedStage], folder: Path, params: Mapping[str, Any], root: Path
) -> list[str]:
    """How an artifact differs from the record of the stage that made it, as texts.

    Args:
        stages: from `read_lock`.
        folder: of the artifact, absolute.
        params: the recorded parameters of the artifact, by dotted key.
        root: of the project, absolute.
    """
    name = folder.relative_to(root).as_posix() if folder.is_relative_to(root) else ""
    problems: list[str] = []
    for stage in stages:
        outs = {path: md5 for path, md5 in stage.outs.items() if _is_within(path, name)}
        for path, md5 in outs.items():
            file = root / path
            if file.exists() and dvc_md5(file) != md5:
                problems.append(f"{path} is not what dvc.lock records (its md5 differs)")
        if outs:
            problems += [
                f"dvc.lock records another value of {key}"
                for key, value in stage.params.items()
                if key in params and params[key] != value
            ]
    return problems


def _is_within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}/")


def dvc_md5(path: Path) -> str:
    """The digest of a file or folder as DVC 3 computes it."""
    if path.is_file():
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "md5").hexdigest()
    files = {p.relative_to(path).as_posix(): p for p in path.rglob("*") if p.is_file()}
    entries = [{"md5": dvc_md5(files[name]), "relpath": name} for name in sorted(files)]
    return hashlib.md5(json.dumps(entries, sort_keys=True).encode()).hexdigest() + ".dir"
