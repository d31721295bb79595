"""The `salmask` command: what a person asks about a project, beside `dvc repro` that makes it."""

import contextlib
import functools
import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import torch
from PIL import Image

from salmask import lineage as lineages
from salmask import provenance
from salmask.commands import costs, suites
from salmask.commands import doctor as doctors
from salmask.commands.check import entry, validate
from salmask.data import manifest
from salmask.data.decode import decode, resample
from salmask.data.file_bytes import ImageError, content
from salmask.datasets import download as fetches
from salmask.datasets import folder_fingerprint as watches
from salmask.encoders import export as exports
from salmask.encoders import importing
from salmask.encoders import on_disk as encoder_file
from salmask.errors import UserError
from salmask.findings import Finding
from salmask.params.names import import_names
from salmask.params.run import read_run
from salmask.params.values import check as check_value
from salmask.params.view import ViewConfig
from salmask.params.yaml_file import Params
from salmask.report import gallery as sheet
from salmask.saliency import localizers
from salmask.saliency.scda import activation_map
from slurm import doctor as cluster_doctors
from slurm import profile

_GALLERY_LEVEL = 224  # px at which pictures are scored for smaller views too


def _readable_errors(command: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except UserError as error:
            click.echo(f"error: {error}", err=True)
            sys.exit(2)

    return wrapped


@click.group()
@click.version_option(package_name="salmask")
def main() -> None:
    """Masking as an augmentation, saliency says where."""


@main.command()
@click.argument("file", type=click.Path(exists=True, path_type=Path))
@click.option("--images", is_flag=True, help="Also read every image and compare its sha256.")
@_readable_errors
def lineage(file: Path, images: bool) -> None:
    """Walks from FILE back to the bytes it came from, and checks every digest on the way."""
    root = provenance.find_root(file.resolve().parent)
    if lineages.find(file.resolve(), root) is None:
        raise UserError(f"{file} carries no provenance: it is not an artifact of this pipeline")
    chain = lineages.trace(file.resolve(), root)
    _show(chain, 0, set())
    sound = chain.sound()
    if images:
        sound = _check_images(root / "artifacts" / "data") and sound
    click.echo("everything matches" if sound else "something no longer matches: see `!` above")
    sys.exit(0 if sound else 1)


def _show(link: lineages.Link, depth: int, shown: set[Path]) -> None:
    pad = "   " * depth + ("<- " if depth else "")
    if link.path in shown:
        click.echo(f"{pad}{link.path} (above)")
        return
    shown.add(link.path)
    made = link.provenance
    if made:
        name = " ".join(filter(None, [made["stage"], made["name"]]))
        versions = f"torch {made['versions']['torch']}, {made['device']['type']}"
        click.echo(f"{pad}{link.path}: {name} @{made['fingerprint']}, {versions}")
    else:
        click.echo(f"{pad}{link.path}")
    for problem in link.problems:
        click.echo("   " * depth + f"   ! {problem}")
    for parent in link.parents:
        _show(parent, depth + 1, shown)


def _check_images(data: Path) -> bool:
    rows = manifest.load(data)
    bad = 0
    for row in range(len(rows)):
        try:
            with content(rows.file(row)) as (sha256, _):
                problem = "" if sha256 == rows.sha256[row] else "not the file that prepare read"
        except ImageError as error:
            problem = str(error)
        if problem:
            shown = str(rows.file(row)).encode(errors="backslashreplace").decode()
            click.echo(f"   ! {shown}: {problem}")
            bad += 1
    click.echo(f"{len(rows) - bad} of {len(rows)} images are the ones in the manifest")
    return not bad


@main.command()
@click.argument("name", required=False)
@_readable_errors
def suite(name: str | None) -> None:
    """Puts suites/NAME.yaml in place of params.yaml, once it has passed every check; without NAME,
    lists the suites with what they need."""
    root = provenance.find_root()
    if name is not None:
        click.echo(suites.put(root, name, validate))
        return
    click.echo(costs.listing(root))


@main.command()
@_readable_errors
def check() -> None:
    """Checks what params.yaml says, every run and import included, before hours are spent on it.

    Data and the localizer's weights are for `salmask doctor`.
    """
    root = provenance.find_root()
    params = Params.read(root / "params.yaml")
    validate(params)
    with contextlib.chdir(root):  # where stages run: paths may be relative to it
        for name in import_names(params):
            importing.read(*entry(params, name))
    click.echo("params.yaml is sound")


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("file", type=click.Path(path_type=Path))
@_readable_errors
def watch(folder: Path, file: Path) -> None:
    """Writes FILE, to be data.root in FOLDER's place where DVC cannot watch that itself."""
    count = watches.write(folder, file)
    click.echo(f"{file} stands for {count} files; run this again when they change")


@main.command()
@click.argument("name", required=False)
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@_readable_errors
def fetch(name: str | None, folder: Path | None) -> None:
    """Downloads the data set NAME into FOLDER, to be its root; without NAME, lists them all."""
    if name is None:
        click.echo("\n".join(fetches.listing()))
    elif folder is None:
        raise UserError(f"where to? salmask fetch {name} FOLDER")
    else:
        click.echo(fetches.fetch(name, folder))


@main.command()
@_readable_errors
def doctor() -> None:
    """Checks machine, params.yaml, data, weights and cluster; estimates prepare and saliency."""
    root = provenance.find_root()
    params = Params.read(root / "params.yaml")
    stopped = False
    with contextlib.chdir(root):  # where stages run: data.root may be relative to it
        for finding in itertools.chain(doctors.examine(params, validate, root), _cluster()):
            click.echo(f"{finding.state:5} {finding.text}")
            stopped |= finding.state == "stop"
    sys.exit(1 if stopped else 0)


def _cluster() -> Iterator[Finding]:
    try:
        yield from cluster_doctors.examine_profile(profile.chosen())
    except UserError as error:
        yield Finding("stop", str(error))


@main.command()
@_readable_errors
def results() -> None:
    """Prints the table of results of the last report."""
    report = provenance.find_root() / "artifacts" / "report"
    if not (report / "results.txt").is_file():
        raise UserError(f"{report} holds no results yet: run `dvc repro`")
    click.echo((report / "results.txt").read_text())
    click.echo(f"report: {report / 'index.html'}")


@main.command()
@click.argument("images", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--out", default="gallery.png", type=click.Path(path_type=Path), show_default=True)
@click.option("--size", default=224, show_default=True, help="Side of the views in px.")
@click.option("--grid", default=7, show_default=True, help="Patches a side.")
@click.option(
    "--run", "name", help="Show this run's mask too, at its size; a learned one, as trained."
)
@_readable_errors
def gallery(images: tuple[Path, ...], out: Path, size: int, grid: int, name: str | None) -> None:
    """Draws what every mask does to your own pictures: views, saliency, hard negatives."""
    runs, maskers = [], {}
    if name is not None:
        root = provenance.find_root()
        run = read_run(Params.read(root / "params.yaml"), name)
        if masker := encoder_file.load_masker(root / "artifacts/pretrain" / name, run):
            maskers[name] = masker
        runs, size, grid = [run], run.view.size, run.view.grid
    spec, tensors = localizers.lite0()
    trunk = localizers.Trunk(spec)
    trunk.layers.load_state_dict(tensors)
    pictures = [_opened(path) for path in images]
    level = max(size, _GALLERY_LEVEL)
    whole = torch.stack([resample(picture, (level, level)) for picture in pictures])
    with torch.inference_mode():
        activation = activation_map(trunk(whole.float() / 255))
    view = check_value({"size": size, "grid": grid}, ViewConfig, "--size and --grid")
    maps = {level: activation / activation.mean(dim=(1, 2), keepdim=True)}
    out.write_bytes(sheet.mask_sheet(pictures, maps, view, sheet.masks_of(runs, maskers)))
    click.echo(f"{len(pictures)} pictures drawn to {out}")


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "layout",
    type=click.Choice(list(exports.FORMATS)),
    required=True,
    help="Whose layout.",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The file to write.")
@_readable_errors
def export(folder: Path, layout: str, out: Path) -> None:
    """Writes the encoder in FOLDER as a weights file of another program, and compares features."""
    made = exports.export(folder, layout, out)
    click.echo(made.notes)
    click.echo(
        f"{out}: read back, it finds the same features: their largest difference is "
        f"{made.difference:.1e} of the largest of them, {made.largest:.3g}"
    )


def _opened(path: Path) -> Image.Image:
    try:
        return decode(path)
    except Exception as error:
        raise UserError(f"{path} cannot be read as an image: {error}") from None


if __name__ == "__main__":
    main()
