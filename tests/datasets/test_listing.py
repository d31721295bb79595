"""Names in messages."""

import pytest

from salmask.datasets.listing import shorten


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["b\udcff", "new\nline", "é"], "b\\udcff, new\\nline, é"),
        (list("abcdefg"), "a, b, c, d, e and 2 more"),
    ],
)
def test_names_are_shortened_and_escaped(names: list[str], text: str) -> None:
    assert shorten(names) == text
