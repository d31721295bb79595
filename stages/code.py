"""Digests of the code that decides the result of each stage."""

from pathlib import Path

import click

from salmask.code_digests import code_digest
from salmask.files import write_bytes
from salmask.params.yaml_file import Params
from salmask.stage_modules import stage_keys, stage_modules
from stages.errors import Stage

OUT = Path("artifacts/code")
DEMO = ("salmask.datasets.demo",)  # the demo has no folder of images: DVC watches its code


@click.command(cls=Stage)
def main() -> None:
    """Writes artifacts/code/<key>.sha256 for every stage, run, protocol and data set."""
    params, project = Params.read(), Path.cwd()
    modules = {key: stage_modules(params, key) for key in stage_keys(params)}
    digests: dict[tuple[str, ...], str] = {}  # many runs share their modules
    for key, names in (modules | {"demo": DEMO}).items():
        if names not in digests:
            digests[names] = code_digest(names, project)
        write_bytes(OUT / f"{key}.sha256", f"{digests[names]}\n".encode())


if __name__ == "__main__":
    main()
