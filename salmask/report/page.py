"""The report: everything collected, drawn and written as one page that needs no network."""

import base64
import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
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
from salmask.report.comparison import Comparison, Declared
from salmask.report.responses import Sweep
from salmask.saliency.store import SaliencyStore

_TEMPLATE = "page.html.j2"
_MASKED_ROWS, _QUERIES, _NEIGHBOURS = 4, 8, 5


@dataclass(frozen=True)
class Places:
    """Where the pipeline left its artifacts; absolute. root: the project's folder."""

    root: Path
    data: Path
    store: Path
    pretrain: Path
    evaluate: Path


@dataclass(frozen=True)
class Picture:
    """A figure of the page. facts: what was measured on it, for its caption."""

    png: bytes
    facts: Mapping[str, Any]

    @property
    def uri(self) -> str:
        return "data:image/png;base64," + base64.b64encode(self.png).decode()


@dataclass(frozen=True)
class Report:
    """html: the page. results: what goes into results.json. text: the tables for a terminal."""

    html: str
    results: Mapping[str, Any]
    text: str


def build(
    runs: Sequence[RunConfig],
    protocols: Sequence[str],
    chosen: Mapping[str, Sequence[str]],
    seed: int,
    places: Places,
    device: torch.device,
    imported: Sequence[str] = (),
    wanted: Mapping[str, Declared] | None = None,
    swept: Mapping[str, Sweep] | None = None,
) -> Report:
    """Collects the listed runs and protocols and draws the page. protocols: of every run. chosen:
    run -> what was evaluated besides, by the names of folders. imported: names of encoders that
    others trained, which have scores, and neither curve nor mask. wanted: the papers' tables that
    runs answer. swept: grids, whose response is drawn.

    Raises UserError when something that the pipeline should have made is missing.
    """
    names = [*(run.name for run in runs), *imported]
    rows = manifests.load(places.data)
    done = {name: [*protocols, *chosen[name]] for name in names}
    scored = tables.collect(done, places.evaluate, places.root)
    found = tables.results(names, scored, rows.name)
    apart = {name for s in scored if s.protocol not in protocols for name in s.metrics}
    blocks = tables.blocks(found, validation_splits(rows), apart)
    compared = comparison.compare(wanted or {}, swept or {}, found)
    store = SaliencyStore.open(places.store, rows.digest) if places.store.exists() else None
    pictures = {
        "curves": _curves(names, places.pretrain),
        "bars": _bars(blocks),
        "responses": _responses(swept or {}, runs, found, compared, blocks),
        "saliency": store and _saliency(rows, store, places.data / "masks"),
        "neighbours": _neighbours(rows, blocks, names, places.pretrain, device),
    }
    dataset = json.loads((places.data / "dataset.json").read_text())
    html = render(
        dataset=dataset,
        labelled=rows.labelled(),
        about=evidence.about(runs, scored),
        seed=seed,
        blocks=blocks,
        compared=compared,
        pictures=pictures,
        masked=[] if store is None else _masked(rows, store, runs, places.pretrain, seed),
        detections=[
            Picture(found.png, vars(found)) for found in detections.collect(scored, places.evaluate)
        ],
        evidence=[evidence.of(s) for s in scored],
        has_saliency=store is not None,
        runs=names,
        imported=[evidence.imported(name, places.pretrain) for name in imported],
    )
    told = [tables.text(blocks), *(comparison.text(each) for each in compared)]
    return Report(html, found, "\n\n".join(told))


def render(**context: Any) -> str:
    """The template with its values; everything that is text is escaped."""
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
    """Writes index.html, results.json and results.txt, the tables for a terminal."""
    write_bytes(folder / "index.html", report.html.encode())
    write_json(folder / "results.json", report.results)
    write_bytes(folder / "results.txt", f"{report.text}\n".encode())


# ------------------------------------------------------------------------------------- figures


def _curves(names: Sequence[str], pretrain: Path) -> Picture | None:
    histories = {}
    for name in names:
        file = pretrain / name / "history.csv"
        if file.is_file():  # an encoder that was brought along has none
            with file.open(newline="") as stream:
                histories[name] = [
                    {k: float(v) for k, v in r.items()} for r in csv.DictReader(stream)
                ]
    return Picture(figures.curves(histories), {}) if histories else None


def _bars(blocks: Sequence[tables.Block]) -> Picture | None:
    panels = []
    for block in blocks:
        column = tables.first_knn(block)
        if column is not None:
            scores = {r: (c[column].value, c[column].untrained) for r, c in block.rows.items()}
            panels.append(figures.Bars(f"{block.metrics[column]} on {block.split}", scores))
    return Picture(figures.bars(panels), {"splits": len(panels)}) if panels else None


def _responses(
    swept: Mapping[str, Sweep],
    runs: Sequence[RunConfig],
    found: Mapping[str, Any],
    compared: Sequence[Comparison],
    blocks: Sequence[tables.Block],
) -> Picture | None:
    """By the metric of the suite's first table, or else by the first k-NN."""
    column = tables.first_knn(blocks[0]) if blocks else None
    name = compared[0].columns[0][1] if compared else None
    name = name or (blocks[0].metrics[column] if column is not None else None)
    configs = {run.name: run for run in runs}
    lines = responses.lines(swept, configs, found, name) if name else {}
    return Picture(responses.draw(lines), {"metric": name}) if lines else None


def _saliency(rows: Manifest, store: SaliencyStore, masks: Path) -> Picture | None:
    split = samples.validation_split(rows)
    level = store.levels[-1]
    groups = []
    for title, ids in samples.groups(rows, split):
        maps = store.activation(torch.tensor(ids), level)
        groups.append((title, list(zip(samples.pictures(rows, ids), maps, strict=True))))
    if not groups:
        return None
    overlap = samples.overlap(rows, store, split, masks)
    facts = {
        "split": split,
        "level": level,
        "grid": tuple(store.maps[level].shape[1:]),
        "overlap": overlap,
        "classes": [title for title, _ in groups if title],
    }
    return Picture(sheets.overlays(groups), facts)


def _masked(
    rows: Manifest, store: SaliencyStore, runs: Sequence[RunConfig], pretrain: Path, seed: int
) -> list[Picture]:
    """One sheet per kind of view that the runs use (mostly one)."""
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
    masks: Sequence[gallery.Shown],
    seed: int,
    runs: Sequence[RunConfig],
) -> Picture:
    images = [read_image(rows, row) for row in ids.tolist()]  # whole: views crop them
    maps = {level: store.activation(ids, level) for level in store.levels}
    drawn = gallery.mask_sheet(images, maps, view, masks, seed=seed, ids=ids)
    return Picture(drawn, {"view": view, "runs": [run.name for run in runs]})


def _neighbours(
    rows: Manifest,
    blocks: Sequence[tables.Block],
    names: Sequence[str],
    pretrain: Path,
    device: torch.device,
) -> Picture | None:
    run, why = tables.best_run(blocks, names)
    split = samples.validation_split(rows)
    encoder = encoder_file.load(pretrain / run, device)
    found, searched = samples.nearest(encoder, rows, split, _QUERIES, _NEIGHBOURS)
    if not found:
        return None
    drawn = [
        (f.title, samples.pictures(rows, [f.query])[0], samples.judged(rows, f)) for f in found
    ]
    facts = {
        "run": run,
        "why": why,
        "split": split,
        "searched": searched,
        "of": len(rows.ids("train")),
    }
    return Picture(sheets.neighbours(drawn), facts)
