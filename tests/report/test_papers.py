"""papers.json: sizes of the tables, and some numbers."""

from decimal import Decimal

import pytest

from salmask.errors import UserError
from salmask.report import papers

SIZES = {  # rows, columns, numbers
    "chin 1": (12, 1, 12), "chin 2": (4, 9, 36), "chin 3": (4, 2, 8), "chin 4": (9, 1, 9),
    "chin 5": (2, 6, 12), "chin 6": (10, 1, 10), "chin 7": (5, 1, 5), "chin 8": (6, 1, 6),
    "chin repository": (12, 5, 60),
    "mixmask-preprint 1": (12, 3, 31), "mixmask-preprint 2": (2, 6, 12),
    "mixmask-preprint 3": (3, 1, 3), "mixmask-preprint 4": (3, 1, 3),
    "mixmask-preprint 5": (4, 7, 28), "mixmask-preprint 6": (3, 6, 18),
    "mixmask-preprint 7": (4, 15, 60), "mixmask-preprint 8": (15, 4, 39),
    "mixmask-preprint 9": (4, 4, 16), "mixmask-preprint 10": (2, 4, 8),
    "mixmask 1": (13, 3, 34), "mixmask 3": (2, 4, 0), "mixmask 4": (3, 9, 0),
    "mixmask 5": (5, 6, 0), "mscn section 5.1": (4, 1, 4), "mscn 1": (4, 2, 0),
    "mscn 2": (6, 1, 6), "mscn 3": (4, 2, 0), "mscn 4": (4, 9, 0), "mscn 5": (2, 1, 2),
}  # fmt: skip


def test_every_table_is_there_in_its_shape() -> None:
    shapes = {}
    for name, table in papers.tables().items():
        assert all(len(cells) == len(table.columns) for cells in table.rows.values()), name
        numbers = [cell for cells in table.rows.values() for cell in cells if cell is not None]
        shapes[name] = (len(table.rows), len(table.columns), len(numbers))
    assert shapes == SIZES


def test_numbers_keep_the_digits_that_are_printed() -> None:
    cells = papers.tables()["mixmask-preprint 1"].rows
    assert [str(cell) for cell in cells["discrete"]] == ["68.11", "46.40", "68.44"]
    assert [str(cell) for cell in cells["grid 2×2"]] == ["68.11", "46.4", "68.44"]


def at(table: str, row: str, column: str = "Top-1") -> papers.Number:
    return papers.tables()[table].number_at(row, column)


def test_numbers_that_the_papers_print_twice_are_the_same() -> None:
    """In Chin's repository and tables, in Tables 5 and 1 to 3, in both versions of MixMask."""
    whole = papers.tables()["chin repository"]
    for table in ("chin 2", "chin 3"):
        for row, cells in papers.tables()[table].rows.items():
            for column, value in zip(papers.tables()[table].columns, cells, strict=True):
                if column in whole.columns:
                    assert whole.number_at(row, column) == value
    assert at("chin 5", "ImageNet-1K", "ImageNet-100") == at(
        "chin 1", "MoCo v2 + high-pass", "Linear evaluation"
    )
    assert at("chin 5", "ImageNet-1K", "VOC AP75") == at(
        "chin 2", "MoCo v2 + high-pass", "VOC AP75"
    )
    later = papers.tables()["mixmask 1"]
    for row, cells in papers.tables()["mixmask-preprint 1"].rows.items():
        for column, value in zip(later.columns, cells, strict=True):
            if row in later.rows and value is not None:
                assert abs(value - Decimal(str(later.number_at(row, column)))) <= Decimal("0.051")
    assert at("mixmask-preprint 3", "P = 0.5") == at(
        "mixmask-preprint 5", "MixMask*", "ImageNet-1K MoCo v2"
    )
    assert at("mixmask-preprint 4", "MixMask") == at(
        "mixmask-preprint 5", "MixMask", "ImageNet-1K MoCo v2"
    )


def test_what_no_text_gives_is_none() -> None:
    assert at("mixmask-preprint 1", "grid 48×48", "CIFAR-100") is None
    assert at("chin 1", "a row of ours", "Linear evaluation") is None


@pytest.mark.parametrize("name", ["mixmask-preprint 1", "mixmask 1"])
def test_discrete_cells_that_equal_the_2x2_grids_have_a_note(name: str) -> None:
    table = papers.tables()[name]
    for column in ("Tiny-ImageNet", "ImageNet-1K"):
        assert table.number_at("discrete", column) == table.number_at("grid 2×2", column)
    assert "cells of discrete masks on Tiny-ImageNet and ImageNet-1K" in table.note
    assert "probably these runs" in table.note


def test_an_unknown_table_lists_the_known_tables() -> None:
    with pytest.raises(
        UserError, match=r"tables\.chin 9: there is no such table of a paper; .*chin 8"
    ):
        papers.table("chin 9", "params.yaml: tables.chin 9")


def test_headings_name_paper_and_table() -> None:
    assert papers.tables()["chin 8"].heading.startswith("Chin et al. 2024, Table 8: hard negatives")
    assert papers.tables()["chin repository"].heading.startswith("Chin et al. 2024, repository: ")
