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

from salmask import costs, encoder_file, frameworks, importing, provenance, suites
from salmask import doctor as doctors
from salmask import export as exports
from salmask import lineage as lineages
from salmask.backbones import build_encoder
from salmask.config import CHOSEN, Choice, Params, SaliencyConfig, ViewConfig, bind, pick
from salmask.config import check as check_value
from salmask.data import fetch as fetches
from salmask.data import manifest
from salmask.data import watch as watches
from salmask.data.content import ImageError, content
from salmask.data.images import decode, resample
from salmask.data.sources import configured
from salmask.errors import UserError
from salmask.evaluate import finetune, knn, linear, linear_fast, transfer, variance
from salmask.evaluate.detection import sources as detection
from salmask.evaluate.detection.model import trunk_of
from salmask.masks import strategies
from salmask.report import comparison
from salmask.report import gallery as sheet
from salmask.saliency import localizers
from salmask.saliency.scda import activation_map
from salmask.shapes import Wiring
from slurm import doctor as cluster_doctors
from slurm import profile

_EVALUATIONS: dict[str, Callable[..., Any]] = {
    "knn": knn.run,
    "linear_fast": linear_fast.run,
    "linear": linear.run,
    "finetune": finetune.run,
    "transfer": transfer.run,
    "variance": variance.run,
}
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
    """Checks all of params.yaml, every run and import included, before hours are spent on it."""
    root = provenance.find_root()
    params = Params.read(root / "params.yaml")
    validate(params)
    with contextlib.chdir(root):  # where stages run: paths may be relative to it
        for name in params.import_names():
            importing.read(*_import(params, name))
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


def _cluster() -> Iterator[doctors.Finding]:
    try:
        yield from cluster_doctors.examine_profile(profile.chosen())
    except UserError as error:
        yield doctors.Finding("stop", str(error))


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
        run = Params.read(root / "params.yaml").run(name)
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


def validate(params: Params) -> None:
    """Reads every section as the stages will. Raises UserError at the first that does not fit."""
    configured(params.choice("data"), f"{params.source}: data")
    localizer = params.choice("localizer")
    bind(
        pick(localizers.LOCALIZERS, localizer, "localizer"),
        localizer,
        f"{params.source}: localizer",
    )
    params.section("saliency", SaliencyConfig)
    suites.refuse_grids(params)
    wirings: dict[str, Wiring] = {}  # of the frameworks that were built: many runs share one
    for name in params.run_names():
        run = params.run(name)
        parts = (run.framework, run.encoder, run.train.batch)
        try:
            with torch.device("meta"):  # runs framework's and mask's checks, without their memory
                if repr(parts) not in wirings:
                    wirings[repr(parts)] = frameworks.build(*parts, steps=1).wiring
                strategies.build(run.mask, wirings[repr(parts)], run.view)
        except UserError as error:
            raise UserError(f"{params.source}: runs.{name}: {error}") from None
        params.run_seed(name)
    params.raw("imports")  # DVC looks for it, even if it names nothing
    for name in params.import_names():
        importing.check(*_import(params, name))
    _validate_evaluations(params)
    comparison.declared(params)


def _import(params: Params, name: str) -> tuple[importing.Import, str]:
    key = f"imports.{name}"
    return params.section(key, importing.Import), f"{params.source}: {key}"


def _validate_evaluations(params: Params) -> None:
    for name in params.section("transfer", dict[str, Any]):
        configured(params.choice(f"transfer.{name}"), f"{params.source}: transfer.{name}")
    for name in params.section("detect", dict[str, Any]):
        detection.configured(params.choice(f"detect.{name}"), f"{params.source}: detect.{name}")
    everywhere, chosen = params.section("evaluate.protocols", list[str]), params.chosen()
    for protocol in CHOSEN:
        params.raw(f"evaluate.chosen.{protocol}")  # DVC looks for each, even if it names nothing
        if protocol in everywhere:
            raise UserError(
                f"{params.source}: evaluate.protocols: {protocol} has a stage of its own: list the "
                f"runs that it is for under evaluate.chosen.{protocol} (a suite may say it here, "
                "for all)"
            )
    for name, folders in chosen.items():
        if any(folder.startswith("detect-") for folder in folders):
            _validate_trunk(params, name)
    asked = {*everywhere, *(f.partition("-")[0] for own in chosen.values() for f in own)}
    for protocol in sorted(asked - {"detect"}):  # whose options stand with its images
        key = f"evaluate.{protocol}"
        choice = Choice(protocol, params.section(key, dict[str, Any]))
        bind(pick(_EVALUATIONS, choice, f"{params.source}: evaluate"), choice, key)


def _validate_trunk(params: Params, name: str) -> None:
    """Whether a detector can be built around the encoder of a run or import."""
    if name in params.import_names():
        encoder = _import(params, name)[0].encoder
    else:
        encoder = params.run(name).encoder
    try:
        with torch.device("meta"):
            trunk_of(build_encoder(encoder), encoder.arch)
    except UserError as error:
        raise UserError(f"{params.source}: evaluate.chosen.detect: {name}: {error}") from None


if __name__ == "__main__":
    main()
