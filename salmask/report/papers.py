"""The papers' numbers, as their tables print them (papers.json), and our names for what they test.

They come from the papers' own texts and, for Chin et al. 2024, from the figures in the public
repository. A cell that no text gives is None.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from importlib.resources import files

from salmask.errors import UserError

FRAMEWORKS = {"moco": "MoCo v2", "simclr": "SimCLR", "byol": "BYOL", "simsiam": "SimSiam"}
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
MAIN = "chin 1"  # the table that every report shows

Number = Decimal | int | None  # Decimal: with as many digits as the paper prints


@dataclass(frozen=True)
class PaperTable:
    """One table of a paper. rows: label -> a number per column. unit: what its numbers count in.
    note: what a reader has to know."""

    paper: str
    number: str
    title: str
    columns: Sequence[str]
    rows: Mapping[str, Sequence[Number]]
    unit: Decimal = Decimal(1)
    note: str = ""

    @property
    def heading(self) -> str:
        numbered = self.number[0].isdigit()
        return f"{self.paper}, {f'Table {self.number}' if numbered else self.number}: {self.title}"

    def number_at(self, row: str, column: str) -> Number:
        """None where the paper has no such row, or a blank."""
        return self.rows[row][self.columns.index(column)] if row in self.rows else None


@cache
def tables() -> Mapping[str, PaperTable]:
    """Every table in papers.json by "<paper> <table>", in the papers' order."""
    text = files("salmask.report").joinpath("papers.json").read_text()
    papers = json.loads(text, parse_float=Decimal)
    return {
        f"{key} {number}": PaperTable(paper["name"], number, **told)
        for key, paper in papers.items()
        for number, told in paper["tables"].items()
    }


def table(name: str, where: str) -> PaperTable:
    """The table called "<paper> <table>". where: for the message. Raises UserError."""
    found = tables()
    if name not in found:
        raise UserError(f"{where}: no such table of a paper; there are: {', '.join(found)}")
    return found[name]
