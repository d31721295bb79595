"""`salmask lineage`: prints the steps that an artifact was made by, and checks their digests."""

from pathlib import Path

import click

from salmask import lineage
from salmask.dvc_lock import read_lock
from salmask.errors import UserError
from salmask.files import absolute
from salmask.provenance import find_root


def check_lineage(file: Path, images: bool) -> bool:
    """Prints the lineage of a file as a tree.

    Args:
        file: any file or folder below `artifacts/`.
        images: also read every image of the manifest and compare its sha256.

    Returns:
        Whether everything that was checked is unchanged.

    Raises:
        UserError: if no provenance.json describes the file.
    """
    file = absolute(file)
    root = find_root(file.parent)
    if lineage.find_provenance(file, root) is None:
        raise UserError(f"{file} has no provenance: it is not an artifact of this pipeline")
    link = lineage.trace(file, root)
    _print_tree(link, 0, set())
    unchanged = link.sound()
    if images:
        unchanged = _check_images(root / "artifacts" / "data") and unchanged
    locked = "and dvc.lock" if read_lock(root) else "only: there is no dvc.lock to compare with"
    click.echo(f"compared: files and code with the records in provenance.json {locked}")
    click.echo("everything matches" if unchanged else "not everything matches: see `!` above")
    return unchanged


def _print_tree(link: lineage.Link, depth: int, printed: set[Path]) -> None:
    indent = "   " * depth
    line = f"{indent}{'<- ' if depth else ''}{link.path}"
    if link.path in printed:
        click.echo(f"{line} (see above)")
        return
    printed.add(link.path)
    record = link.provenance
    if record:
        name = " ".join(filter(None, [record["stage"], record["name"]]))
        versions = f"torch {record['versions']['torch']}, {record['device']['type']}"
        line += f": {name} @{record['fingerprint']}, {versions}"
    click.echo(line)
    for problem in link.problems:
        click.echo(f"{indent}   ! {problem}")
    for parent in link.parents:
        _print_tree(parent, depth + 1, printed)


def _check_images(data: Path) -> bool:
    """Prints every image whose bytes are not those that the manifest lists."""
    from salmask.data import manifest  # imports torch, which the command does not need otherwise
    from salmask.data.file_bytes import ImageError, open_with_digest

    rows = manifest.load(data)
    changed = 0
    for row in range(len(rows)):
        try:
            with open_with_digest(rows.file(row)) as (sha256, _):
                problem = "" if sha256 == rows.sha256[row] else "its sha256 is not the manifest's"
        except ImageError as error:
            problem = str(error)
        if problem:
            path = str(rows.file(row)).encode(errors="backslashreplace").decode()
            click.echo(f"   ! {path}: {problem}")
            changed += 1
    click.echo(f"{len(rows) - changed} of {len(rows)} images match the manifest")
    return not changed
