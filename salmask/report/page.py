"""The report: one HTML page with all results and figures, which needs no network."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from salmask import collapse
from salmask.artifacts import DATA, EVALUATE, PRETRAIN, STORE
from salmask.data import manifest as manifests
from salmask.data.manifest import Manifest, read_image
from salmask.encoders import on_disk as encoder_file
from salmask.errors import UserError
from salmask.evaluate.features import validation_split, validation_splits
from salmask.files import write_bytes, write_json
from salmask.frameworks import wiring_of
from salmask.lineage import summary
from salmask.masks.on_disk import load_masker
from salmask.params.names import evaluation_folders, import_names, run_names
from salmask.params.run import RunConfig, read_run
from salmask.params.view import ViewConfig
from salmask.params.yaml_file import Params
from salmask.randomness import Draws
from salmask.report import (
    comparison,
    detections,
    figures,
    gallery,
    histograms,
    kernels,
    papers,
    samples,
    sheets,
    sweep_charts,
    tables,
    text,
)
from salmask.report.comparison import Comparison
from salmask.report.figures import PageFigure
from salmask.report.sweep_charts import Sweep
from salmask.report.tables import RunMetrics, SplitResults
from salmask.saliency.store import SaliencyStore
from salmask.stored_files import damage_reported, read_json

_TEMPLATE = "page.html.j2"
_MASKED_ROWS, _QUERIES, _NEIGHBOURS = 4, 8, 5
_COUNTED = 32  # images whose pixels the histograms count


@dataclass(frozen=True)
class Report:
    """The page, the content of results.json, and the tables for the terminal."""

    html: str
    results: Mapping[str, Any]
    text: str


def build(params: Params, root: Path, device: torch.device, failures: Mapping[str, str]) -> Report:
    """Reads the results of the runs and imports in params.yaml, and draws the page.

    Runs without an encoder and evaluations without metrics are named, and left out otherwise.

    Args:
        params: the parameters of the project.
        root: absolute path of the project.
        device: where the encoder for nearest neighbours runs.
        failures: the messages of failed work, by `<stage>-<name>`.

    Raises:
        UserError: if there are no prepared images or no encoder, or an artifact is damaged.
    """
    all_folders = evaluation_folders(params)
    missing = tables.missing(all_folders, root, failures)
    folders = tables.trained(all_folders, root)
    if not folders:
        raise UserError(f"no run has an encoder yet. {tables.missing_text(missing)}")
    runs = [read_run(params, name) for name in run_names(params) if name in folders]
    imported = [name for name in import_names(params) if name in folders]
    names = [*(run.name for run in runs), *imported]
    seed, sweeps = params.seed(), sweep_charts.sweeps(params)
    rows = manifests.load(root / DATA)
    evaluations = tables.collect(folders, root)
    common = params.section("evaluate.protocols", list[str])
    scored = validation_splits(rows) or {"other data sets": ""}  # of transfer and detect
    splits = tables.results_by_split(evaluations, scored, common)
    results = tables.results(names, evaluations, rows.name)
    compared = comparison.compare(comparison.read_tables(params), sweeps, results)
    pretrain, stored = root / PRETRAIN, (root / STORE).exists()
    store = SaliencyStore.open(root / STORE, rows.digest) if stored else None
    html = render(
        dataset=read_json(root / DATA / "dataset.json"),
        labelled=rows.labelled(),
        summary=summarize_runs(runs, evaluations),
        seed=seed,
        splits=splits,
        compared=compared,
        figures={
            "curves": _curves(names, pretrain),
            "probe": _probe(names, pretrain, validation_split(rows)),
            "bars": _bars(splits),
            "responses": _responses(sweeps, runs, results, _main_metric(compared, splits)),
            "saliency": store and _saliency(rows, store, root / DATA / "masks"),
            "kernels": PageFigure(kernels.draw(names, pretrain), {}),
            "neighbours": _neighbours(rows, splits, names, pretrain, device),
        },
        masked=[] if store is None else _masked(rows, store, runs, pretrain, seed),
        detections=[
            detections.read(root / EVALUATE / e.run / e.folder, e.run, e.dataset)
            for e in evaluations
            if e.evaluation == "detect"
        ],
        evaluations=evaluations,
        has_saliency=store is not None,
        collapsed={name: list(collapse.signs_of_run(pretrain / name).values()) for name in names},
        missing=missing,
        runs=names,
        imported=[_imported(name, pretrain) for name in imported],
    )
    parts = [tables.text(splits), *(comparison.text(each) for each in compared)]
    parts.append(tables.missing_text(missing))
    return Report(html, results, "\n\n".join(filter(None, parts)))


def render(**context: Any) -> str:
    """The page as HTML. All text is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # takes long to import

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = text.number
    environment.filters["metric"] = text.metric
    environment.filters["summary"] = summary
    environment.globals["papers"] = papers
    return environment.get_template(_TEMPLATE).render(**context)


def write(report: Report, folder: Path) -> None:
    """Writes index.html, results.json and results.txt (the tables for the terminal)."""
    write_bytes(folder / "index.html", report.html.encode())
    write_json(folder / "results.json", report.results)
    write_bytes(folder / "results.txt", f"{report.text}\n".encode())


def summarize_runs(runs: Sequence[RunConfig], evaluations: Sequence[RunMetrics]) -> dict[str, str]:
    """The main parameters of the runs. Where runs differ, all values, separated by slashes."""

    def values(each: Iterable[object]) -> str:
        return " / ".join(dict.fromkeys(str(value) for value in each))

    records = [step.provenance for e in evaluations for step in e.link.steps()]
    devices = values(made["device"]["type"] for made in records if made["stage"] == "pretrain")
    return {
        "framework": values(wiring_of(r.framework, r.train.batch).label for r in runs),
        "arch": values(r.encoder.arch for r in runs),
        "width": values(r.encoder.width for r in runs),
        "view": values(r.view.size for r in runs),
        "grid": values(f"{r.view.grid}×{r.view.grid}" for r in runs),
        "epochs": values(r.train.epochs for r in runs),
        "device": devices or "unknown device",
    }


def _imported(name: str, pretrain: Path) -> dict[str, Any]:
    """The description of an imported encoder, from its encoder.json."""
    file = pretrain / name / "encoder.json"
    spec = read_json(file)
    with damage_reported(file):
        return {"name": name, "encoder": spec["encoder"], "input": spec["input"]} | spec["source"]


def _curves(names: Sequence[str], pretrain: Path) -> PageFigure | None:
    histories = _rows_of(names, pretrain, "history.csv")
    return PageFigure(figures.curves(histories), {}) if histories else None


def _probe(names: Sequence[str], pretrain: Path, split: str) -> PageFigure | None:
    """Curves of the measurements during pretraining."""
    measured = _rows_of(names, pretrain, "probe.csv")
    if not measured:
        return None
    shown = ("epoch", "knn_top1", "rankme", "spread")
    curves = {
        name: [{key: row[key] for key in shown if key in row} for row in rows]
        for name, rows in measured.items()
    }
    facts = {
        key: max(int(row.get(key, 0)) for rows in measured.values() for row in rows)
        for key in ("images", "train_images")
    }
    return PageFigure(figures.curves(curves), facts | {"split": split})


def _rows_of(names: Sequence[str], pretrain: Path, file: str) -> dict[str, list[dict[str, float]]]:
    """The rows of a CSV file, by the names of the runs that have it; imported encoders do not."""
    rows = {name: collapse.read_rows(pretrain / name / file) for name in names}
    return {name: each for name, each in rows.items() if each}


def _bars(splits: Sequence[SplitResults]) -> PageFigure | None:
    panels = []
    for split in splits:
        if metric := tables.first_knn([split]):
            scores = {run: (score.value, score.untrained) for run, score in metric.scores.items()}
            panels.append(figures.Bars(f"{metric.name} on {split.split}", scores))
    return PageFigure(figures.bars(panels), {"splits": len(panels)}) if panels else None


def _main_metric(compared: Sequence[Comparison], splits: Sequence[SplitResults]) -> str | None:
    """The metric of the first table, or else the first k-NN metric."""
    if compared:
        return next(iter(compared[0].config.columns.values()), None)
    metric = tables.first_knn(splits)
    return metric.name if metric else None


def _responses(
    sweeps: Mapping[str, Sweep],
    runs: Sequence[RunConfig],
    results: Mapping[str, Any],
    name: str | None,
) -> PageFigure | None:
    configs = {run.name: run for run in runs}
    curves = sweep_charts.curves(sweeps, configs, results, name) if name else {}
    return PageFigure(sweep_charts.draw(curves), {"metric": name}) if curves else None


def _saliency(rows: Manifest, store: SaliencyStore, masks: Path) -> PageFigure | None:
    split = validation_split(rows)
    level = store.levels[-1]
    groups = []
    for title, ids in samples.groups(rows, split):
        maps = store.activation(torch.tensor(ids), level)
        groups.append((title, list(zip(samples.thumbnails(rows, ids), maps, strict=True))))
    if not groups:
        return None
    facts = {
        "split": split,
        "level": level,
        "grid": tuple(store.maps[level].shape[1:]),
        "overlap": samples.overlap(rows, store, split, masks),
        "classes": [title for title, _ in groups if title],
    }
    return PageFigure(sheets.overlays(groups), facts)


def _masked(
    rows: Manifest, store: SaliencyStore, runs: Sequence[RunConfig], pretrain: Path, seed: int
) -> list[tuple[PageFigure, PageFigure]]:
    """One sheet of masked views, and the histograms of the masks, per distinct `view:` of the
    runs."""
    by_view: dict[ViewConfig, list[RunConfig]] = {}
    for run in runs:
        by_view.setdefault(run.view, []).append(run)
    shown = samples.spread(rows, "train", _MASKED_ROWS)
    counted = samples.evenly(rows.ids("train"), _COUNTED)
    images, maps = _images_and_maps(rows, store, shown)
    more_images, more_maps = _images_and_maps(rows, store, counted)
    loaded = {run.name: load_masker(pretrain / run.name, run) for run in runs}
    maskers = {name: masker for name, masker in loaded.items() if masker}
    drawn, draws = [], Draws.of(seed, 0, counted)
    for view, own in by_view.items():
        masks = gallery.masks_of(own, maskers)
        facts = {"view": view, "runs": [run.name for run in own], "counted": len(counted)}
        sheet = gallery.mask_sheet(images, maps, view, masks, seed=seed, ids=shown)
        pair = gallery.pair_of(more_images, more_maps, view, draws)
        histogram = histograms.draw(pair, draws, view, masks)
        drawn.append((PageFigure(sheet, facts), PageFigure(histogram, facts)))
    return drawn


def _images_and_maps(
    rows: Manifest, store: SaliencyStore, ids: Tensor
) -> tuple[list[Image.Image], dict[int, Tensor]]:
    """Images in full size, because views crop them, and their saliency maps by level."""
    images = [read_image(rows, row) for row in ids.tolist()]
    return images, {level: store.activation(ids, level) for level in store.levels}


def _neighbours(
    rows: Manifest,
    splits: Sequence[SplitResults],
    names: Sequence[str],
    pretrain: Path,
    device: torch.device,
) -> PageFigure | None:
    run, reason = tables.best_run(splits, names)
    split = validation_split(rows)
    encoder = encoder_file.load(pretrain / run, device)
    nearest, searched = samples.nearest(encoder, rows, split, _QUERIES, _NEIGHBOURS)
    if not nearest:
        return None
    facts = {"run": run, "reason": reason, "split": split, "searched": searched}
    return PageFigure(sheets.neighbours(nearest), facts | {"total": len(rows.ids("train"))})
