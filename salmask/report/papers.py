"""The tables of the papers, as printed (papers.json).

The numbers come from the texts of the papers and, for Chin et al. 2024, from the figures in the
public repository. A cell that no text gives is None.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from importlib.resources import files

from salmask.errors import UserError

MAIN = "chin 1"  # the table that a report without tables of its own shows

Number = Decimal | int | None  # Decimal keeps the printed digits


@dataclass(frozen=True)
class PaperTable:
    """One table of a paper.

    Args:
        paper: name of the paper.
        number: number of the table, or the place of the numbers in the text.
        title: what the table compares.
        columns: one title per column.
        rows: label -> one number per column.
        unit: factor of the numbers.
        note: explanation for the page.
    """

    paper: str
    number: str
    title: str
    columns: Sequence[str]
    rows: Mapping[str, Sequence[Number]]
    unit: Decimal = Decimal(1)
    note: str = ""

    @property
    def heading(self) -> str:
        """Paper, number and title in one line."""
        numbered = self.number[0].isdigit()
        return f"{self.paper}, {f'Table {self.number}' if numbered else self.number}: {self.title}"

    def number_at(self, row: str, column: str) -> Number:
        """The number in a cell; None if the cell is blank or the paper has no such row."""
        return self.rows[row][self.columns.index(column)] if row in self.rows else None


@cache
def tables() -> Mapping[str, PaperTable]:
    """All tables of papers.json by "<paper> <table>", in the order of the papers."""
    text = files("salmask.report").joinpath("papers.json").read_text(encoding="utf-8")
    papers = json.loads(text, parse_float=Decimal)
    return {
        f"{key} {number}": PaperTable(paper["name"], number, **fields)
        for key, paper in papers.items()
        for number, fields in paper["tables"].items()
    }


def table(name: str, where: str) -> PaperTable:
    """The table with the name "<paper> <table>".

    Args:
        name: such as "chin 1".
        where: start of the error message.

    Raises:
        UserError: if there is no such table.
    """
    if name not in tables():
        known = ", ".join(tables())
        raise UserError(f"{where}: there is no such table of a paper; there are: {known}")
    return tables()[name]
