import json

import pytest
import torch

from salmask.errors import UserError
from salmask.lineage import summary, trace
from salmask.provenance import (
    Recipe,
    code_digest,
    file_digest,
    find_root,
    recipe,
    record,
    tree_digest,
)

CPU = torch.device("cpu")
FILES = {
    "dvc.yaml": "stages: {}\n",
    "stages/__init__.py": "",
    "stages/train.py": (
        "from salmask import model\nfrom salmask.deep.part import x\nprint(model, x)\n"
    ),
    "stages/score.py": "import salmask.other\nprint(salmask.other)\n",
    "salmask/__init__.py": "",
    "salmask/model.py": (
        '"""A model."""\n\n\ndef f(a):\n    """Doubles."""\n    return 2 * a  # twice\n'
    ),
    "salmask/other.py": "import math\n\nY = math.pi\n",
    "salmask/deep/__init__.py": "from importlib import import_module\n\nimport_module('x')\n",
    "salmask/deep/part.py": "import salmask.other\n\nx = salmask.other.Y\n",
    "salmask/deep/plugin.py": "z = 1\n",
    "salmask/deep/table.json": "{}",
    "salmask/unused.py": "q = 1\n",
}


@pytest.fixture
def root(tmp_path):
    """A small project: `train` reaches model, deep.part, deep.plugin, other; `score` only other."""
    for name, text in FILES.items():
        path = tmp_path / "project" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "project"


def edit(root, name: str, old: str, new: str) -> None:
    text = (root / name).read_text()
    assert old in text
    (root / name).write_text(text.replace(old, new))


# ---------------------------------------------------------------------------------------- code


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("salmask/model.py", "# twice", "# two times"),
        ("salmask/model.py", '"""Doubles."""', '"""Returns the double."""'),
        ("salmask/model.py", '    """Doubles."""\n', ""),
        ("salmask/model.py", '"""A model."""\n', ""),
        ("salmask/model.py", "return 2 * a", "return (2\n            * a)"),
        ("salmask/model.py", "def f(a):", "\n\ndef f( a ):"),
        ("salmask/unused.py", "q = 1", "q = 2"),
        ("stages/score.py", "print", "repr"),
    ],
)
def test_a_digest_ignores_what_does_nothing(root, name, old, new):
    before = code_digest("stages.train", root)
    edit(root, name, old, new)
    assert code_digest("stages.train", root) == before


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("stages/train.py", "print(model, x)", "print(x, model)"),
        ("salmask/model.py", "2 * a", "3 * a"),
        ("salmask/model.py", "f(a)", "f(a, b=1)"),
        ("salmask/deep/part.py", "x = salmask.other.Y", "x = 2"),
        ("salmask/other.py", "math.pi", "math.e"),  # reached through deep.part
        ("salmask/deep/plugin.py", "z = 1", "z = 2"),  # found by name through import_module
        ("salmask/deep/table.json", "{}", "{ }"),
        ("salmask/__init__.py", "", "V = 1\n"),
        ("stages/__init__.py", "", "V = 1\n"),
    ],
)
def test_a_digest_notices_what_does(root, name, old, new):
    before = code_digest("stages.train", root)
    edit(root, name, old, new) if old else (root / name).write_text(new)
    assert code_digest("stages.train", root) != before


def test_a_function_of_only_a_docstring_may_lose_it_for_pass(root):
    (root / "salmask/model.py").write_text('def f():\n    """Nothing."""\n')
    before = code_digest("stages.train", root)
    (root / "salmask/model.py").write_text("def f():\n    pass\n")
    assert code_digest("stages.train", root) == before


def test_a_new_module_counts_once_it_is_imported(root):
    before = code_digest("stages.score", root)
    (root / "salmask/new.py").write_text("n = 1\n")
    assert code_digest("stages.score", root) == before
    edit(root, "salmask/other.py", "import math\n", "import math\nimport salmask.new\n")
    after = code_digest("stages.score", root)
    edit(root, "salmask/new.py", "n = 1", "n = 2")
    assert len({before, after, code_digest("stages.score", root)}) == 3


def test_where_the_project_lies_does_not_matter(root, tmp_path):
    before = code_digest("stages.train", root)
    root.rename(tmp_path / "moved")
    assert code_digest("stages.train", tmp_path / "moved") == before


# --------------------------------------------------------------------------------- fingerprints


@pytest.mark.parametrize(
    "change",
    [
        {"stage": "b"},
        {"name": "b"},
        {"code": "b"},
        {"params": {"lr": 2}},
        {"params": {"lr": 1, "x": 0}},
        {"inputs": {"data": "e"}},
        {"inputs": {}},
    ],
    ids=str,
)
def test_a_fingerprint_changes_with_every_field(change):
    base = {"stage": "a", "name": "a", "code": "a", "params": {"lr": 1}, "inputs": {"data": "d"}}
    same = Recipe(**base).fingerprint
    assert len(same) == 12
    assert Recipe(**(base | change)).fingerprint != same


def test_a_fingerprint_does_not_see_the_order_of_params():
    a, b = ({"x": 1, "y": 2}, {"y": 2, "x": 1})
    assert Recipe("s", "n", "c", a, {}).fingerprint == Recipe("s", "n", "c", b, {}).fingerprint


def test_a_recipe_digests_code_and_inputs(root):
    (root / "data").mkdir()
    (root / "data" / "a").write_text("1")
    paths = [(root / "data").relative_to(root)]
    before = recipe("train", "x", {"lr": 1}, paths, root)
    assert before == recipe("train", "x", {"lr": 1}, paths, root)
    assert before.inputs == {"data": tree_digest(root / "data")}
    (root / "data" / "a").write_text("2")
    changed = recipe("train", "x", {"lr": 1}, paths, root)
    assert changed.fingerprint != before.fingerprint
    edit(root, "salmask/model.py", "2 * a", "3 * a")
    again = recipe("train", "x", {"lr": 1}, paths, root)
    assert again.fingerprint != changed.fingerprint


@pytest.mark.parametrize("change", ["content", "name", "more", "less"])
def test_a_tree_digest_sees_names_and_contents(tmp_path, change):
    folder = tmp_path / "tree"
    (folder / "sub").mkdir(parents=True)
    (folder / "a").write_text("1")
    (folder / "sub" / "b").write_text("2")
    before = tree_digest(folder)
    assert tree_digest(folder) == before
    if change == "content":
        (folder / "sub" / "b").write_text("3")
    elif change == "name":
        (folder / "a").rename(folder / "c")
    elif change == "more":
        (folder / "c").write_text("")
    else:
        (folder / "a").unlink()
    assert tree_digest(folder) != before


def test_a_file_digest_is_its_sha256(tmp_path):
    (tmp_path / "abc").write_text("abc")
    wanted = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_digest(tmp_path / "abc") == tree_digest(tmp_path / "abc") == wanted


# -------------------------------------------------------------------------------------- lineage


def made(root, stage: str, out: str, inputs: list[str], **files: str):
    """Plays a stage: writes its files and their provenance; returns the folder."""
    folder = root / out
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    paths = [(root / name).relative_to(root) for name in inputs]
    made_by = recipe(stage, "", {"seed": 0}, paths, root)
    (folder / "provenance.json").write_text(json.dumps(record(made_by, folder, CPU)))
    return folder


@pytest.fixture
def chain(root):
    """images -> artifacts/data (score) -> artifacts/encoder (train)."""
    (root / "images").mkdir()
    (root / "images" / "1.png").write_text("pixels")
    made(root, "score", "artifacts/data", ["images"], manifest="rows")
    made(root, "train", "artifacts/encoder", ["artifacts/data"], weights="w", history="h")
    return root


def problems(link) -> list[str]:
    return [*link.problems, *(p for parent in link.parents for p in problems(parent))]


def test_an_untouched_chain_is_sound(chain):
    link = trace(chain / "artifacts/encoder/weights", chain)
    assert link.sound() and problems(link) == []
    assert str(link.path) == "artifacts/encoder/weights"
    (data,) = link.parents
    (images,) = data.parents
    assert (str(data.path), str(images.path)) == ("artifacts/data", "images")
    assert images.provenance == {} and images.parents == []


def test_a_summary_names_the_stages_last_first(chain):
    link = trace(chain / "artifacts/encoder", chain)
    marks = [link.provenance["fingerprint"], link.parents[0].provenance["fingerprint"]]
    assert summary(link) == f"train@{marks[0]} < score@{marks[1]}"


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (
            lambda r: (r / "artifacts/encoder/weights").write_text("x"),
            ["weights is not the file that was made (its sha256 differs)"],
        ),
        (lambda r: (r / "artifacts/encoder/history").unlink(), ["history is missing"]),
        (
            lambda r: (r / "artifacts/data/manifest").write_text("x"),
            ["manifest is not the file", "its input artifacts/data has changed since"],
        ),
        (
            lambda r: (r / "images/1.png").write_text("x"),
            ["its input images has changed since"],
        ),
        (lambda r: (r / "images/2.png").write_text("x"), ["its input images has changed since"]),
        (
            lambda r: edit(r, "salmask/model.py", "2 * a", "3 * a"),
            ["the code of stage train has changed since"],
        ),
        (
            lambda r: edit(r, "salmask/other.py", "math.pi", "math.e"),
            [
                "the code of stage train has changed since",
                "the code of stage score has changed since",
            ],
        ),
    ],
    ids=["output", "lost output", "input", "source", "new source", "code", "shared code"],
)
def test_what_no_longer_matches_is_said(chain, damage, told):
    damage(chain)
    link = trace(chain / "artifacts/encoder", chain)
    assert not link.sound()
    found = problems(link)
    assert len(found) == len(told)
    for wanted in told:
        assert any(wanted in problem for problem in found), found


def test_a_lost_source_is_said_once_at_least(chain):
    (chain / "images" / "1.png").unlink()
    (chain / "images").rmdir()
    link = trace(chain / "artifacts/encoder", chain)
    assert "missing" in problems(link)


def test_a_comment_leaves_a_chain_sound(chain):
    edit(chain, "salmask/model.py", "# twice", "# two times")
    assert trace(chain / "artifacts/encoder", chain).sound()


def test_a_file_that_was_never_made_is_missing(chain):
    assert trace(chain / "elsewhere" / "x", chain).problems == ["missing"]
    assert "missing" in trace(chain / "artifacts/encoder/absent", chain).problems


def test_a_record_holds_nothing_that_differs_between_equal_runs(chain):
    folder = chain / "artifacts/encoder"
    before = (folder / "provenance.json").read_text()
    made_by = recipe("train", "", {"seed": 0}, [folder.parent.relative_to(chain) / "data"], chain)
    assert json.dumps(record(made_by, folder, CPU)) == before


def test_the_project_is_found_from_below(root):
    assert find_root(root / "salmask" / "deep") == root.resolve()


def test_outside_a_project_says_so(tmp_path):
    with pytest.raises(UserError, match=r"no dvc\.yaml"):
        find_root(tmp_path)
