"""Names that DVC would put into command lines are refused by the stage `code`, which runs first."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from stages import code
from tests.helpers.project import TINY

NAMES = [
    "a; touch hacked",
    "a b",
    "$(touch hacked)",
    "`touch hacked`",
    "a\nb",
    "..",
    "a/b",
    "'",
    "-a",
]
DATA = {"name": "demo", "root": "x"}


def with_name(place: str, name: str) -> dict[str, Any]:
    values = copy.deepcopy(TINY)
    evaluate = values["evaluate"]
    match place:
        case "runs":
            values["runs"][name] = {}
        case "imports":
            values["imports"] = {name: {"path": "x.pth", "arch": "resnet18"}}
        case "transfer":
            values["transfer"] = {name: DATA}
        case "detect":
            values["detect"] = {name: {"data": DATA, "training": {"recipe": "voc"}}}
        case "protocols":
            evaluate["protocols"] = ["knn", name]
        case _:
            evaluate["chosen"] |= {"variance": ["plain"], place: [name]}
    return values


@pytest.mark.parametrize(
    "place",
    [
        "runs",
        "imports",
        "transfer",
        "detect",
        "protocols",
        "linear",
        "finetune",
        "variance_through",
    ],
)
def test_a_name_that_is_a_command_stops_the_first_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in NAMES:
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(with_name(place, name)))
        result = CliRunner().invoke(code.main, [])
        assert result.exit_code == 2 and "Traceback" not in result.output
        assert f"{place}" in result.output + str(result.stderr)
        assert not (tmp_path / "artifacts").exists()


def test_plain_names_are_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for place in ("runs", "imports", "transfer", "detect"):
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(with_name(place, "a-1")))
        assert CliRunner().invoke(code.main, []).exit_code == 0
