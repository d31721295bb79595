"""Digests what each stage's code does, so that a comment costs nothing and a change reruns."""

from pathlib import Path

import click

from salmask.provenance import code_digest
from stages.errors import readable_errors

OUT = Path("artifacts/code")
NOT_STAGES = ("__init__", "errors", "evaluation", "paths", "preparation", "code")


@click.command()
@readable_errors
def main() -> None:
    """Writes artifacts/code/<stage>.sha256 for every stage."""
    OUT.mkdir(parents=True, exist_ok=True)
    for script in sorted(Path("stages").glob("*.py")):
        if script.stem not in NOT_STAGES:
            digest = code_digest(f"stages.{script.stem}", Path.cwd())
            (OUT / f"{script.stem}.sha256").write_text(digest + "\n")


if __name__ == "__main__":
    main()
