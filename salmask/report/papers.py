"""The papers' numbers (papers.json), and when one may stand beside ours.

A number of a paper is shown next to one of ours only when dataset, framework, mask, metric and
architecture are the same; whatever the paper changed besides (`setting`) rules it out.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from salmask.config import Choice, RunConfig
from salmask.masks.strategies import MASKS, options_of

FRAMEWORKS = {"moco": "MoCo v2", "simclr": "SimCLR"}  # of the tables in papers.json
MASK_NAMES = {
    "none": "no mask",
    "mscn": "MSCN",
    "adios": "ADIOS",
    "high_pass": "high-pass",
    "blur": "strong blur",
    "mean": "mean fill",
    "mixmask": "MixMask",
    "unmix": "Un-Mix",
    "mixmask_star": "MixMask*",
    "erase": "erase-based",
}
TITLES = {
    "1": "Table 1: linear evaluation on ImageNet-100",
    "2": "Table 2: detection and segmentation after pretraining on ImageNet-100",
    "3": "Table 3: classification elsewhere after pretraining on ImageNet-100",
    "4": "Table 4: where to mask (Tiny-ImageNet)",
    "5": "Table 5: which localizer (ImageNet-100)",
    "6": "Table 6: which branch is masked (Tiny-ImageNet)",
    "7": "Table 7: variance over augmentations (Tiny-ImageNet)",
    "8": "Table 8: hard negatives (Tiny-ImageNet)",
    "repository": "Figures in the paper's public repository (ImageNet-100)",
}
_ARCH, _WIDTH = "resnet50", 64


@dataclass(frozen=True)
class Reported:
    """One number of a paper. setting: what the paper varied in that row, if anything."""

    paper: str
    table: str
    dataset: str
    framework: str
    mask: str
    metric: str
    value: float
    setting: str = ""


@dataclass(frozen=True)
class Table:
    """One table of a paper for the page. rows: (label, one cell per column, None for a blank)."""

    title: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[float | None]]]

    @property
    def decimals(self) -> int:
        """As many as the paper's most exact number here has, so that none is rounded."""
        values = [v for _, cells in self.rows for v in cells if v is not None]
        return max(len(str(value).partition(".")[2]) for value in values)


@cache
def reported() -> tuple[Reported, ...]:
    """Every number in papers.json, in the papers' order."""
    text = files("salmask.report").joinpath("papers.json").read_text()
    return tuple(Reported(**row) for row in json.loads(text))


def beside(run: RunConfig, dataset: str, metric: str) -> Reported | None:
    """What the papers report for this very cell, or None: a dash is better than a near miss."""
    if not _is_standard(run):
        return None
    wanted = (dataset, run.framework.name, run.mask.name, metric, "")
    for row in reported():
        if (row.dataset, row.framework, row.mask, row.metric, row.setting) == wanted:
            return row
    return None


def _is_standard(run: RunConfig) -> bool:
    """ResNet-50 as the papers use it, the mask with its default options, MoCo's second version."""
    same_network = (run.encoder.arch, run.encoder.width) == (_ARCH, _WIDTH)
    return same_network and run.framework.options.get("head", "mlp") == "mlp" and _defaults(run)


def _defaults(run: RunConfig) -> bool:
    if run.mask.name not in MASKS:
        return False
    return options_of(run.mask) == options_of(Choice(run.mask.name, {}))


def table(name: str) -> Table:
    """A table of Chin et al. as its rows and columns."""
    rows = [row for row in reported() if row.table == name]
    columns = list(dict.fromkeys(row.metric for row in rows))
    cells: dict[str, dict[str, float]] = {}
    for row in rows:
        words = [FRAMEWORKS[row.framework], MASK_NAMES[row.mask], row.setting]
        cells.setdefault(", ".join(filter(None, words)), {})[row.metric] = row.value
    body = [(label, [found.get(c) for c in columns]) for label, found in cells.items()]
    return Table(TITLES[name], columns, body)


def linear_on_imagenet100() -> Table:
    """Table 1, masks by frameworks."""
    found = {(r.mask, r.framework): r.value for r in reported() if r.table == "1"}
    masks = {mask: name for mask, name in MASK_NAMES.items() if (mask, "moco") in found}
    rows = [(name, [found[mask, f] for f in FRAMEWORKS]) for mask, name in masks.items()]
    return Table(TITLES["1"], list(FRAMEWORKS.values()), rows)
