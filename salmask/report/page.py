"""The report: one HTML page with all results and figures, which needs no network."""

import base64
import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from salmask.data import manifest as manifests
from salmask.data.manifest import Manifest, read_image
from salmask.encoders import on_disk as encoder_file
from salmask.evaluate.features import validation_splits
from salmask.files import write_bytes, write_json
from salmask.masks.on_disk import load_masker
from salmask.params.run import RunConfig
from salmask.params.view import ViewConfig
from salmask.report import (
    comparison,
    detections,
    evidence,
    figures,
    gallery,
    papers,
    responses,
    samples,
    sheets,
    tables,
    text,
)
from salmask.report.comparison import Comparison, TableConfig
from salmask.report.responses import Sweep
from salmask.report.tables import SplitResults
from salmask.saliency.store import SaliencyStore

_TEMPLATE = "page.html.j2"
_MASKED_ROWS, _QUERIES, _NEIGHBOURS = 4, 8, 5


@dataclass(frozen=True)
class ArtifactFolders:
    """Absolute paths of the project, `root`, and of the artifacts that the report reads."""

    root: Path
    data: Path
    store: Path
    pretrain: Path
    evaluate: Path


@dataclass(frozen=True)
class PageFigure:
    """A figure of the page, with the values for its caption."""

    png: bytes
    facts: Mapping[str, Any]

    @property
    def uri(self) -> str:
        """The image as a data URI."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode()


@dataclass(frozen=True)
class Report:
    """The page, the content of results.json, and the tables for the terminal."""

    html: str
    results: Mapping[str, Any]
    text: str


def build(
    runs: Sequence[RunConfig],
    protocols: Sequence[str],
    chosen: Mapping[str, Sequence[str]],
    seed: int,
    folders: ArtifactFolders,
    device: torch.device,
    imported: Sequence[str] = (),
    table_configs: Mapping[str, TableConfig] | None = None,
    sweeps: Mapping[str, Sweep] | None = None,
) -> Report:
    """Reads the results of the listed runs and draws the page.

    Args:
        runs: the pretraining runs.
        protocols: evaluations that are made for every run.
        chosen: run -> folders of the evaluations that were chosen for it.
        seed: the common seed.
        folders: where the artifacts are.
        device: where the encoder for nearest neighbours runs.
        imported: names of imported encoders, which have neither training curve nor mask.
        table_configs: the section `tables`.
        sweeps: the section `sweeps`.

    Raises:
        UserError: for an artifact that is missing.
    """
    names = [*(run.name for run in runs), *imported]
    rows = manifests.load(folders.data)
    evaluated = {name: [*protocols, *chosen[name]] for name in names}
    evaluations = tables.collect(evaluated, folders.evaluate, folders.root)
    results = tables.results(names, evaluations, rows.name)
    chosen_metrics = {n for e in evaluations if e.protocol not in protocols for n in e.metrics}
    splits = tables.results_by_split(results, validation_splits(rows), chosen_metrics)
    compared = comparison.compare(table_configs or {}, sweeps or {}, results)
    store = SaliencyStore.open(folders.store, rows.digest) if folders.store.exists() else None
    page_figures = {
        "curves": _curves(names, folders.pretrain),
        "bars": _bars(splits),
        "responses": _responses(sweeps or {}, runs, results, compared, splits),
        "saliency": store and _saliency(rows, store, folders.data / "masks"),
        "neighbours": _neighbours(rows, splits, names, folders.pretrain, device),
    }
    html = render(
        dataset=json.loads((folders.data / "dataset.json").read_text()),
        labelled=rows.labelled(),
        summary=evidence.summarize_runs(runs, evaluations),
        seed=seed,
        splits=splits,
        compared=compared,
        figures=page_figures,
        masked=[] if store is None else _masked(rows, store, runs, folders.pretrain, seed),
        detections=[
            PageFigure(detected.png, vars(detected))
            for detected in detections.collect(evaluations, folders.evaluate)
        ],
        evidence=[evidence.evaluation_evidence(evaluation) for evaluation in evaluations],
        has_saliency=store is not None,
        runs=names,
        imported=[evidence.imported_encoder(name, folders.pretrain) for name in imported],
    )
    parts = [tables.text(splits), *(comparison.text(each) for each in compared)]
    return Report(html, results, "\n\n".join(parts))


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
    environment.globals["papers"] = papers
    return environment.get_template(_TEMPLATE).render(**context)


def write(report: Report, folder: Path) -> None:
    """Writes index.html, results.json and results.txt (the tables for the terminal)."""
    write_bytes(folder / "index.html", report.html.encode())
    write_json(folder / "results.json", report.results)
    write_bytes(folder / "results.txt", f"{report.text}\n".encode())


def _curves(names: Sequence[str], pretrain: Path) -> PageFigure | None:
    histories = {}
    for name in names:
        file = pretrain / name / "history.csv"
        if file.is_file():  # an imported encoder has none
            with file.open(newline="") as stream:
                histories[name] = [
                    {k: float(v) for k, v in r.items()} for r in csv.DictReader(stream)
                ]
    return PageFigure(figures.curves(histories), {}) if histories else None


def _bars(splits: Sequence[SplitResults]) -> PageFigure | None:
    panels = []
    for split in splits:
        column = tables.first_knn(split)
        if column is not None:
            scores = {run: (s[column].value, s[column].untrained) for run, s in split.rows.items()}
            panels.append(figures.Bars(f"{split.metrics[column]} on {split.split}", scores))
    return PageFigure(figures.bars(panels), {"splits": len(panels)}) if panels else None


def _responses(
    sweeps: Mapping[str, Sweep],
    runs: Sequence[RunConfig],
    results: Mapping[str, Any],
    compared: Sequence[Comparison],
    splits: Sequence[SplitResults],
) -> PageFigure | None:
    """Curves of the metric of the first table, or else of the first k-NN metric."""
    column = tables.first_knn(splits[0]) if splits else None
    name = compared[0].columns[0][1] if compared else None
    name = name or (splits[0].metrics[column] if column is not None else None)
    configs = {run.name: run for run in runs}
    curves = responses.curves(sweeps, configs, results, name) if name else {}
    return PageFigure(responses.draw(curves), {"metric": name}) if curves else None


def _saliency(rows: Manifest, store: SaliencyStore, masks: Path) -> PageFigure | None:
    split = samples.validation_split(rows)
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
) -> list[PageFigure]:
    """One sheet per distinct `view:` of the runs."""
    by_view: dict[ViewConfig, list[RunConfig]] = {}
    for run in runs:
        by_view.setdefault(run.view, []).append(run)
    ids = samples.spread(rows, "train", _MASKED_ROWS)
    loaded = {run.name: load_masker(pretrain / run.name, run) for run in runs}
    maskers = {name: masker for name, masker in loaded.items() if masker}
    return [
        _mask_sheet(rows, store, ids, view, gallery.masks_of(own, maskers), seed, own)
        for view, own in by_view.items()
    ]


def _mask_sheet(
    rows: Manifest,
    store: SaliencyStore,
    ids: Tensor,
    view: ViewConfig,
    masks: Sequence[gallery.ShownMask],
    seed: int,
    runs: Sequence[RunConfig],
) -> PageFigure:
    images = [read_image(rows, row) for row in ids.tolist()]  # in full size: views crop them
    maps = {level: store.activation(ids, level) for level in store.levels}
    sheet = gallery.mask_sheet(images, maps, view, masks, seed=seed, ids=ids)
    return PageFigure(sheet, {"view": view, "runs": [run.name for run in runs]})


def _neighbours(
    rows: Manifest,
    splits: Sequence[SplitResults],
    names: Sequence[str],
    pretrain: Path,
    device: torch.device,
) -> PageFigure | None:
    run, reason = tables.best_run(splits, names)
    split = samples.validation_split(rows)
    encoder = encoder_file.load(pretrain / run, device)
    nearest, searched = samples.nearest(encoder, rows, split, _QUERIES, _NEIGHBOURS)
    if not nearest:
        return None
    sheet = sheets.neighbours(
        [
            (
                each.title,
                samples.thumbnails(rows, [each.query])[0],
                samples.neighbours_of(rows, each),
            )
            for each in nearest
        ]
    )
    facts = {
        "run": run,
        "reason": reason,
        "split": split,
        "searched": searched,
        "total": len(rows.ids("train")),
    }
    return PageFigure(sheet, facts)
