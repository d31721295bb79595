"""Digests of the code that decides the result of each stage."""

import os
from pathlib import Path

import click

from salmask.code_digests import code_digest
from salmask.files import write_bytes
from salmask.params.names import evaluation_folders
from salmask.params.yaml_file import Params
from salmask.stage_modules import stage_keys, stage_modules
from stages.errors import Stage

OUT = Path("artifacts/code")
DEMO = ("salmask.datasets.demo",)  # the demo has no folder of images: DVC watches its code


@click.command(cls=Stage)
def main() -> None:
    """Writes artifacts/code/<key>.sha256 for every stage, run, protocol and data set."""
    params, project = Params.read(), Path.cwd()
    evaluation_folders(params)  # refuses names that are no runs, before DVC runs their commands
    _link_images(params)
    modules = {key: stage_modules(params, key) for key in stage_keys(params)}
    digests: dict[tuple[str, ...], str] = {}  # many runs share their modules
    for key, names in (modules | {"demo": DEMO}).items():
        if names not in digests:
            digests[names] = code_digest(names, project)
        write_bytes(OUT / f"{key}.sha256", f"{digests[names]}\n".encode())


def _link_images(params: Params) -> None:
    """Links relative folders of images into a copy of the project that lacks them.

    `dvc exp run --temp` and `dvc exp run --queue` run the stages in a copy without the files that
    git ignores. DVC_ROOT is then the project itself.
    """
    project = Path(os.environ.get("DVC_ROOT") or ".").resolve()
    keys = ["data", *(f"transfer.{name}" for name in params.names("transfer"))]
    keys += [f"detect.{name}.data" for name in params.names("detect")]
    for root in (params.value(f"{key}.root") for key in keys):
        if isinstance(root, str) and not Path(root).exists() and (project / root).is_dir():
            Path(root).parent.mkdir(parents=True, exist_ok=True)
            Path(root).symlink_to(project / root)


if __name__ == "__main__":
    main()
