"""Reading of the files that stages write: JSON, CSV and safetensors.

A damaged file is a UserError with the command that makes it again. If provenance.json of the same
folder records the sha256 of a file, the file must have it. A missing file is a FileNotFoundError:
its message depends on the caller.
"""

import csv
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from salmask.errors import UserError
from salmask.files import file_digest, parse_json
from salmask.threads import thread_pool

if TYPE_CHECKING:
    from torch import Tensor

_DIGESTS_AT_ONCE = 4
_PROVENANCE = "provenance.json"
# What the use of a damaged value raises.
_DAMAGED = (ValueError, KeyError, TypeError, IndexError, AttributeError, ArithmeticError, csv.Error)


def read_json(file: Path) -> Any:
    """The value in a JSON file. Raises UserError when it is damaged."""
    content = read_bytes(file)
    with damage_reported(file):
        return parse_json(content)


def read_rows(file: Path) -> list[dict[str, str]]:
    """The rows of a CSV file with a header line. Raises UserError when it is damaged."""
    content = read_bytes(file)
    with damage_reported(file):
        lines = content.decode("utf-8", "surrogateescape").split("\n")
        rows = list(csv.DictReader((f"{line}\n" for line in lines if line), strict=True))
        if any(None in row or None in row.values() for row in rows):
            raise ValueError("a line has another number of values than the header")
        return rows


def read_tensors(file: Path) -> "dict[str, Tensor]":
    """The tensors of a safetensors file. Raises UserError when it is damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load  # imports torch

    content = read_bytes(file)
    with damage_reported(file):
        try:
            return load(content)
        except SafetensorError as error:
            raise ValueError(str(error)) from None


def read_bytes(file: Path) -> bytes:
    """The bytes of a file, compared with the sha256 in provenance.json of the same folder.

    Raises UserError when they differ or cannot be read, and FileNotFoundError for a missing file.
    """
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None
    recorded = _recorded_digest(file)
    if recorded is not None and recorded != hashlib.sha256(content).hexdigest():
        raise _damage(file, f"its sha256 is not the one in {_PROVENANCE}")
    return content


def changed_files(folder: Path) -> list[str]:
    """The files in a folder that differ from their sha256 in provenance.json next to the folder, if
    there is one. Missing files are left out."""
    outputs = _provenance(folder.parent).get("outputs")
    recorded = outputs if isinstance(outputs, dict) else {}
    names = [name for name in recorded if name.startswith(f"{folder.name}/")]
    files = [name for name in names if (folder.parent / name).is_file()]
    with thread_pool(_DIGESTS_AT_ONCE) as pool:
        digests = list(pool.map(lambda name: file_digest(folder.parent / name), files))
    return [name for name, sha in zip(files, digests, strict=True) if sha != recorded[name]]


@contextmanager
def damage_reported(file: Path) -> Iterator[None]:
    """Turns what the use of a damaged value raises in the block into a UserError that names the
    file."""
    try:
        yield
    except UserError as error:
        if file.name in str(error):
            raise
        raise _damage(file, str(error)) from None
    except RecursionError:
        raise _damage(file, "it is nested too deeply") from None
    except KeyError as error:
        raise _damage(file, f"{error} is missing") from None
    except _DAMAGED as error:
        raise _damage(file, " ".join(str(error).split())[:200]) from None


def command_for(file: Path) -> str:
    """The command that makes a file in artifacts/ again; "" for a file elsewhere."""
    if "artifacts" not in file.parts:
        return ""
    parts = file.parts
    match parts[len(parts) - parts[::-1].index("artifacts") :]:
        case ["data", *_]:
            stage = "prepare"
        case ["localizer" | "saliency" | "report" as stage, *_]:
            pass
        case ["pretrain", name, _]:
            imported = _provenance(file.parent).get("stage") == "imported"
            stage = f"{'imported' if imported else 'pretrain'}@{name}"
        case ["transfer" | "detect" as kind, name, _]:
            stage = f"{kind}_data@{name}"
        case ["evaluate", run, folder, _]:
            protocol, _, other = folder.partition("-")
            if protocol == "variance" and other:
                stage = f"variance-through@{run}-{other}"
            elif other:
                stage = f"{protocol}@{run}-{other}"
            elif protocol in ("linear", "finetune", "variance"):
                stage = f"{protocol}@{run}"
            else:
                stage = f"evaluate@{run}-{protocol}"
        case _:
            stage = ""
    return f"dvc repro --force {stage}".strip()


def _damage(file: Path, reason: str) -> UserError:
    command = command_for(file)
    advice = f"run `{command}` to make it again" if command else "copy it again from its source"
    return UserError(f"{file} is damaged ({reason}): {advice}")


def _recorded_digest(file: Path) -> str | None:
    outputs = _provenance(file.parent).get("outputs")
    digest = outputs.get(file.name) if isinstance(outputs, dict) else None
    return digest if isinstance(digest, str) and file.name != _PROVENANCE else None


def _provenance(folder: Path) -> dict[str, Any]:
    try:
        content = parse_json((folder / _PROVENANCE).read_bytes())
    except (OSError, ValueError):  # lineage reports it
        return {}
    return content if isinstance(content, dict) else {}
