"""Numbers and tables as text, for the terminal and the page."""

from collections.abc import Collection, Sequence

from tabulate import tabulate

DASH = "–"
_PERCENT = ("_top1", "_top5", "_mean_per_class", "_ap", "_ap50", "_ap75", "_ap_s", "_ap_m", "_ap_l")


def text_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], left: Collection[int] = (0,)
) -> str:
    """A table for the terminal.

    Args:
        header: one title per column.
        rows: one text per column each.
        left: indices of the columns that are aligned to the left; all others to the right.
    """
    align = ["left" if i in left else "right" for i in range(len(header))]
    return tabulate(rows, list(header), "simple", disable_numparse=True, colalign=align)


def metric(value: float | None, name: str) -> str:
    """The value of a metric: percentages with two decimals, others with four significant digits."""
    if value is None or name.endswith(_PERCENT):
        return number(value)
    return f"{value:.4g}".replace("-", "−")


def number(value: float | None, signed: bool = False, decimals: int = 2) -> str:
    """A number with a fixed number of decimals and a real minus sign; a dash for None."""
    if value is None:
        return DASH
    return f"{value:{'+' if signed else ''}.{decimals}f}".replace("-", "−")
