"""The `salmask` command line: names, arguments and help texts of its commands.

Each command imports its module when it is called, so that `salmask --help` imports click alone.
"""

import sys
from pathlib import Path
from typing import Any

import click

from salmask.errors import UserError

_FILE = click.Path(path_type=Path)
_EXISTING = click.Path(exists=True, path_type=Path)


class _Commands(click.Group):
    """Commands whose UserErrors are printed as messages, with exit code 2."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            from salmask.params.mistakes import full_message

            click.echo(f"error: {full_message(error)}", err=True)
            sys.exit(2)


@click.group(cls=_Commands)
@click.version_option(package_name="salmask")
def main() -> None:
    """Self-supervised pretraining of ConvNets with saliency-guided masking."""


@main.command()
@click.argument("file", type=_EXISTING)
@click.option("--images", is_flag=True, help="Also read every image and compare its sha256.")
def lineage(file: Path, images: bool) -> None:
    """Print the steps and inputs that FILE was made from, and check all digests."""
    from salmask.commands.lineage import check_lineage

    sys.exit(0 if check_lineage(file, images) else 1)


@main.command()
@click.option("--upgrade", is_flag=True, help="Replace dvc.yaml, stages/ and slurm/ of a project.")
def init(upgrade: bool) -> None:
    """Start a project in the current folder, which may hold none of its files."""
    from salmask.commands.init import create_project, upgrade_project

    click.echo(upgrade_project(Path.cwd()) if upgrade else create_project(Path.cwd()))


@main.command()
@click.argument("name", required=False)
def suite(name: str | None) -> None:
    """Check suites/NAME.yaml and write it to params.yaml.

    Without NAME, list all suites with their data and an estimate of their cost.
    """
    from salmask.commands import costs, suites
    from salmask.provenance import find_root

    root = find_root()
    click.echo(costs.listing(root) if name is None else suites.install(root, name))


@main.command()
def check() -> None:
    """Check params.yaml, with every run and import, before anything is computed.

    `salmask doctor` also checks the data and the weights of the localizer.
    """
    from salmask.commands.check import check_project

    check_project()
    click.echo("params.yaml is valid")


@main.command("fingerprint-folder")
@click.argument("folder", type=_FILE)
@click.argument("file", type=_FILE)
def fingerprint_folder(folder: Path, file: Path) -> None:
    """List the files in FOLDER in FILE. Use FILE as data.root where DVC cannot watch FOLDER."""
    from salmask.datasets.folder_fingerprint import write_fingerprint

    count = write_fingerprint(folder, file)
    click.echo(f"{file} lists {count} files; run this command again when the files change")


@main.command()
@click.argument("name", required=False)
@click.argument("folder", required=False, type=_FILE)
def fetch(name: str | None, folder: Path | None) -> None:
    """Download the data set NAME to FOLDER, which then is its data.root.

    Without NAME, list the data sets that can be downloaded.
    """
    from salmask.datasets import download

    if name is None:
        click.echo("\n".join(download.listing()))
    elif folder is None:
        raise UserError(f"the folder is missing: salmask fetch {name} FOLDER")
    else:
        click.echo(download.fetch(name, folder))


@main.command()
def doctor() -> None:
    """Check machine, params.yaml, data, weights and cluster, and estimate the first stages."""
    from salmask.commands.doctor import examine_project

    stopped = False
    for finding in examine_project():
        click.echo(f"{finding.state:5} {finding.text}")
        stopped |= finding.state == "stop"
    sys.exit(1 if stopped else 0)


@main.command()
@click.argument("kinds", nargs=-1, metavar="[features|unfinished|superseded]...")
@click.option("--remove", is_flag=True, help="Remove the folders instead of listing them.")
def prune(kinds: tuple[str, ...], remove: bool) -> None:
    """List what may be removed from the folder of all runs, with its size.

    Nothing that this command removes makes `dvc repro` run a finished stage again.
    """
    from salmask.commands.prune import prune as listed
    from salmask.provenance import find_root

    for line in listed(find_root(), kinds, remove):
        click.echo(line)


@main.command()
def results() -> None:
    """Print the tables of the last report, and mark runs whose numbers no longer match."""
    from salmask.commands.results import marked_results

    click.echo(marked_results())


@main.command()
@click.argument("images", nargs=-1, required=True, type=_EXISTING)
@click.option("--out", default="gallery.png", type=_FILE, show_default=True, help="PNG to write.")
@click.option("--size", default=224, show_default=True, help="Side of the views in px.")
@click.option("--grid", default=7, show_default=True, help="Patches per side.")
@click.option(
    "--run",
    "name",
    help="Also draw the mask of this run, with its view size and grid. A learned mask is drawn as "
    "it was trained.",
)
def gallery(images: tuple[Path, ...], out: Path, size: int, grid: int, name: str | None) -> None:
    """Draw every mask on your own images: views, saliency maps and hard negatives.

    IMAGES are files or folders.
    """
    from salmask.commands.gallery import draw_gallery

    draw_gallery(images, out, size, grid, name)
    click.echo(f"{out} shows the masks")


@main.command()
@click.argument("folder", type=_FILE)
@click.option(
    "--format", "layout", required=True, help="torchvision, timm, detectron2 or safetensors."
)
@click.option("--out", type=_FILE, required=True, help="File to write.")
def export(folder: Path, layout: str, out: Path) -> None:
    """Write the encoder in FOLDER as a weight file of another program, and compare features."""
    from salmask.encoders import export as exporting

    if layout not in exporting.FORMATS:
        formats = ", ".join(exporting.FORMATS)
        raise UserError(f"--format: there is no format {layout!r}; choose from {formats}")
    exported = exporting.export(folder, layout, out)
    click.echo(exported.notes)
    click.echo(
        f"{out}: the file was read back and gives the same features: their largest difference is "
        f"{exported.difference:.1e} of the largest feature, {exported.largest:.3g}"
    )


if __name__ == "__main__":
    main()
