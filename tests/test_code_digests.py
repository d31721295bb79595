"""What a code digest covers, on a small project."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from salmask.code_digests import code_digest, reached
from tests.helpers.code_project import MODULES, edit, write_code_project

TRAIN = MODULES["train"]
SCORE = MODULES["score"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A small project: `train` reaches model, deep.part and other; `score` only other."""
    return write_code_project(tmp_path / "project")


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("salmask/model.py", "# twice", "# two times"),
        ("salmask/model.py", '"""Doubles."""', '"""Returns the double."""'),
        ("salmask/model.py", '    """Doubles."""\n', ""),
        ("salmask/model.py", '"""A model."""\n', ""),
        ("salmask/model.py", "return 2 * a", "return (2\n            * a)"),
        ("salmask/model.py", "def f(a):", "\n\ndef f( a ):"),
        ("salmask/model.py", "must be positive", "has to be positive"),
        ("salmask/model.py", '{a} is', '{type(a)} of {a} is'),
        ("salmask/model.py", "doubling", "doubling now"),
        ("salmask/model.py", "rarely seen", "seldom seen"),
        ("salmask/errors.py", "class", "X = 1\nclass"),  # a module without effect
        ("salmask/unused.py", "q = 1", "q = 2"),
        ("salmask/deep/unused.json", "{}", "[]"),
        ("stages/score.py", "print", "repr"),
    ],
)  # fmt: skip
def test_a_change_without_effect_keeps_the_digest(
    root: Path, name: str, old: str, new: str
) -> None:
    before = code_digest(TRAIN, root)
    edit(root, name, old, new)
    assert code_digest(TRAIN, root) == before


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("stages/train.py", "f(x)", "f(2 * x)"),
        ("salmask/model.py", "2 * a", "3 * a"),
        ("salmask/model.py", "f(a)", "f(a, b=1)"),
        ("salmask/model.py", "a < 0", "a <= 0"),  # the condition of an error counts
        ("salmask/model.py", "ValueError", "TypeError"),
        ("salmask/model.py", "printable(2)", "printable(3)"),  # no call of print
        ("salmask/deep/part.py", "x = salmask.other.Y", "x = 2"),
        ("salmask/other.py", "math.pi", "math.e"),  # reached through deep.part
        ("salmask/deep/table.json", "{}", "{ }"),
        ("salmask/deep/__init__.py", "", "V = 1\n"),
        ("stages/__init__.py", "", "V = 1\n"),
    ],
)
def test_a_change_with_an_effect_changes_the_digest(
    root: Path, name: str, old: str, new: str
) -> None:
    before = code_digest(TRAIN, root)
    edit(root, name, old, new)
    assert code_digest(TRAIN, root) != before


def test_a_selected_module_counts_and_others_of_its_package_do_not(root: Path) -> None:
    before = {name: code_digest([*TRAIN, f"salmask.masks.{name}"], root) for name in ("a", "b")}
    edit(root, "salmask/masks/a.py", "1, ", "3, ")
    after = {name: code_digest([*TRAIN, f"salmask.masks.{name}"], root) for name in ("a", "b")}
    assert (after["a"] != before["a"], after["b"] != before["b"]) == (True, False)


def test_messages_count_where_they_are_results(root: Path) -> None:
    before = {kept: code_digest(TRAIN, root, messages=kept) for kept in (True, False)}
    edit(root, "salmask/model.py", "must be positive", "has to be positive")
    after = {kept: code_digest(TRAIN, root, messages=kept) for kept in (True, False)}
    assert (before[True] != after[True], before[False] == after[False]) == (True, True)


def test_labels_count_for_the_report_only(root: Path) -> None:
    modules = {name: (f"stages.{name}", "salmask.masks.a") for name in ("train", "report")}
    (root / "stages/report.py").write_text("")
    before = {name: code_digest(own, root) for name, own in modules.items()}
    edit(root, "salmask/masks/a.py", "first", "first mask")
    after = {name: code_digest(own, root) for name, own in modules.items()}
    assert before["train"] == after["train"] and before["report"] != after["report"]


def test_an_import_inside_a_function_counts(root: Path) -> None:
    edit(root, "salmask/model.py", "    return", "    from salmask import unused\n    return")
    assert "salmask.unused" in reached(TRAIN, root)


def test_a_function_of_only_a_docstring_may_lose_it_for_pass(root: Path) -> None:
    (root / "salmask/model.py").write_text('def f():\n    """Nothing."""\n')
    before = code_digest(TRAIN, root)
    (root / "salmask/model.py").write_text("def f():\n    pass\n")
    assert code_digest(TRAIN, root) == before


def test_a_new_module_counts_once_it_is_imported(root: Path) -> None:
    before = code_digest(SCORE, root)
    (root / "salmask/new.py").write_text("n = 1\n")
    assert code_digest(SCORE, root) == before
    edit(root, "salmask/other.py", "import math\n", "import math\nimport salmask.new\n")
    after = code_digest(SCORE, root)
    edit(root, "salmask/new.py", "n = 1", "n = 2")
    assert len({before, after, code_digest(SCORE, root)}) == 3


def test_the_place_of_the_project_does_not_matter(root: Path, tmp_path: Path) -> None:
    before = code_digest(TRAIN, root)
    root.rename(tmp_path / "moved")
    assert code_digest(TRAIN, tmp_path / "moved") == before


def test_a_digest_does_not_depend_on_the_locale(root: Path) -> None:
    edit(root, "salmask/model.py", "2 * a", 'len("é") * 2 * a')
    imports = "import pathlib, sys; from salmask.code_digests import code_digest"
    code = f"{imports}; print(code_digest({TRAIN!r}, pathlib.Path(sys.argv[1])))"
    command = [sys.executable, "-c", code, str(root)]
    ascii_only = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    environment = {**os.environ, **ascii_only, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(command, env=environment, text=True, capture_output=True, check=True)
    assert done.stdout.strip() == code_digest(TRAIN, root)
