"""Numbers and tables as a person reads them, on the page and in a terminal."""

DASH = "–"
_PERCENT = ("_top1", "_top5", "_mean_per_class", "_ap", "_ap50", "_ap75", "_ap_s", "_ap_m", "_ap_l")


def aligned(lines: list[list[str]]) -> str:
    """Lines of cells, the first of them the header, as columns; numbers to the right."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    ruled = [lines[0], ["-" * width for width in widths], *lines[1:]]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
        for line in ruled
    )


def metric(value: float | None, name: str) -> str:
    """Percentages with two decimals, anything else with four digits that count."""
    if value is None or name.endswith(_PERCENT):
        return number(value)
    return f"{value:.4g}".replace("-", "−")


def number(value: float | None, signed: bool = False, decimals: int = 2) -> str:
    """Two decimals or so, a real minus sign, and a dash for what does not exist."""
    if value is None:
        return DASH
    return f"{value:{'+' if signed else ''}.{decimals}f}".replace("-", "−")
