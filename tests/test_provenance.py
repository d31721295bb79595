import json
import os
from functools import reduce
from operator import getitem
from pathlib import Path

import pytest
import torch
import yaml

from salmask.dvc_lock import dvc_md5
from salmask.errors import UserError
from salmask.files import file_digest, tree_digest
from salmask.lineage import summary, trace
from salmask.provenance import (
    Recipe,
    changed_files,
    changed_params,
    find_root,
    recipe,
    record,
)
from tests.helpers.code_project import MODULES, edit, write_code_project

CPU = torch.device("cpu")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A small project with two stages, `train` and `score`."""
    return write_code_project(tmp_path / "project")


# --------------------------------------------------------------------------------- fingerprints


@pytest.mark.parametrize(
    "change",
    [
        {"stage": "b"},
        {"name": "b"},
        {"code": "b"},
        {"modules": ("b",)},
        {"params": {"lr": 2}},
        {"params": {"lr": 1, "x": 0}},
        {"inputs": {"data": "e"}},
        {"inputs": {}},
    ],
    ids=str,
)
def test_a_fingerprint_changes_with_every_field(change):
    base = {
        "stage": "a",
        "name": "a",
        "modules": ("a",),
        "code": "a",
        "params": {"lr": 1},
        "inputs": {"data": "d"},
    }
    same = Recipe(**base).fingerprint
    assert len(same) == 12
    assert Recipe(**(base | change)).fingerprint != same


def test_a_fingerprint_does_not_depend_on_the_order_of_params():
    a, b = ({"x": 1, "y": 2}, {"y": 2, "x": 1})
    assert (
        Recipe("s", "n", (), "c", a, {}).fingerprint == Recipe("s", "n", (), "c", b, {}).fingerprint
    )


def test_a_recipe_digests_code_and_inputs(root):
    (root / "data").mkdir()
    (root / "data" / "a").write_text("1")
    paths = [(root / "data").relative_to(root)]
    before = recipe("train", "x", MODULES["train"], {"lr": 1}, paths, root)
    assert before == recipe("train", "x", MODULES["train"], {"lr": 1}, paths, root)
    assert before.inputs == {"data": tree_digest(root / "data")}
    (root / "data" / "a").write_text("2")
    changed = recipe("train", "x", MODULES["train"], {"lr": 1}, paths, root)
    assert changed.fingerprint != before.fingerprint
    edit(root, "salmask/model.py", "2 * a", "3 * a")
    again = recipe("train", "x", MODULES["train"], {"lr": 1}, paths, root)
    assert again.fingerprint != changed.fingerprint


def test_what_changed_since_a_recipe_is_named(root):
    (root / "data").write_text("1")
    assert changed_params(recipe("train", "x", MODULES["train"], {}, [], root), root) == []
    (root / "params.yaml").write_text("train: {lr: 1, epochs: 2}\nruns: {a: {}}\nseed: 0\n")
    params = {"train": {"lr": 1, "epochs": 2}, "runs.a": {}}
    made_by = recipe("train", "x", MODULES["train"], params, [Path("data")], root)
    assert changed_params(made_by, root) == [] and changed_files(made_by, root, root) == []
    (root / "params.yaml").write_text("train: {lr: 2, epochs: 2}\nseed: 1\n")
    assert changed_params(made_by, root) == ["train.lr", "runs.a"]  # the seed was not read
    (root / "data").unlink()
    edit(root, "salmask/model.py", "2 * a", "3 * a")
    assert changed_files(made_by, root, root) == [f"the code in {root}", f"{root}/data"]


@pytest.mark.parametrize("change", ["content", "name", "more", "less"])
def test_a_tree_digest_depends_on_names_and_contents(tmp_path, change):
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
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_digest(tmp_path / "abc") == tree_digest(tmp_path / "abc") == expected


# -------------------------------------------------------------------------------------- lineage


def made(root, stage: str, out: str, inputs: list[str], **files: str):
    """Writes files and their provenance as a stage does; returns the folder."""
    folder = root / out
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    paths = [(root / name).relative_to(root) for name in inputs]
    made_by = recipe(stage, "", MODULES[stage], {"seed": 0}, paths, root)
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


def record_file(root: Path) -> Path:
    return root / "artifacts/encoder/provenance.json"


def rewrite(root: Path, **changes: object) -> None:
    """Edits the record of the encoder."""
    content = json.loads(record_file(root).read_text()) | changes
    record_file(root).write_text(json.dumps(content))


def lock(root: Path, **params: object) -> None:
    """Writes dvc.lock as DVC does after the stage that made the encoder."""
    folder = root / "artifacts/encoder"
    out = {"path": "artifacts/encoder", "hash": "md5", "md5": dvc_md5(folder)}
    stage = {"cmd": "train", "params": {"params.yaml": params}, "outs": [out]}
    (root / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": {"train": stage}}))


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
    ("damage", "messages"),
    [
        (
            lambda r: (r / "artifacts/encoder/weights").write_text("x"),
            ["weights has changed since it was made (its sha256 differs)"],
        ),
        (lambda r: (r / "artifacts/encoder/history").unlink(), ["history is missing"]),
        (
            lambda r: (r / "artifacts/data/manifest").write_text("x"),
            [
                "manifest has changed since it was made",
                "its input artifacts/data has changed since",
            ],
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
        (lambda r: rewrite(r, inputs={}), ["was edited: its fingerprint is that of other content"]),
        (lambda r: rewrite(r, params={"seed": 1}), ["was edited"]),
        (lambda r: rewrite(r, code="5"), ["was edited", "the code of stage train has changed"]),
        (lambda r: record_file(r).write_text("{"), ["is damaged: what made it is unknown"]),
        (lambda r: record_file(r).write_text("{}"), ["is damaged: what made it is unknown"]),
        (lambda r: record_file(r).unlink(), ["no provenance.json: what made it is unknown"]),
        (
            lambda r: (r / "artifacts/data/provenance.json").unlink(),
            [
                "no provenance.json: what made it is unknown",
                "its input artifacts/data has changed since",
            ],
        ),
        (
            lambda r: edit(r, "salmask/other.py", "math.pi", "math.e"),
            [
                "the code of stage train has changed since",
                "the code of stage score has changed since",
            ],
        ),
    ],
    ids=["output", "lost output", "input", "source", "new source", "code", "edited inputs",
         "edited seed", "edited code", "damaged record", "empty record", "lost record",
         "lost record of an input", "shared code"],
)  # fmt: skip
def test_differences_from_the_record_are_listed(chain, damage, messages):
    damage(chain)
    link = trace(chain / "artifacts/encoder", chain)
    assert not link.sound()
    listed = problems(link)
    assert len(listed) == len(messages)
    for message in messages:
        assert any(message in problem for problem in listed), listed


def test_dvc_lock_is_a_second_record(chain):
    """It shows an output that was changed together with its record, and other parameters."""
    folder = chain / "artifacts/encoder"
    lock(chain, seed=0)
    assert trace(folder, chain).sound()
    (folder / "weights").write_text("other")
    rewrite(chain, outputs={n: file_digest(folder / n) for n in ("history", "weights")})
    (problem,) = problems(trace(folder, chain))
    assert problem == "artifacts/encoder is not what dvc.lock records (its md5 differs)"
    lock(chain, seed=1)
    assert problems(trace(folder, chain)) == ["dvc.lock records another value of seed"]
    (chain / "dvc.lock").write_text("")
    with pytest.raises(UserError, match="cannot be read: restore it"):
        trace(folder, chain)


def places(value, place=()):
    """The place of every value inside nested dicts and lists, as keys and indices."""
    if place:
        yield place
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*place, key))


def altered(text, place, new):
    """JSON with another value at a place; without the value if `new` is Ellipsis."""
    content = json.loads(text)
    parent = reduce(getitem, place[:-1], content)
    if new is ...:
        del parent[place[-1]]
    else:
        parent[place[-1]] = new
    return json.dumps(content)


@pytest.mark.parametrize("name", ["artifacts/encoder/provenance.json", "dvc.lock"])
def test_a_record_with_any_other_value_is_reported(chain, name):
    """Python's JSON is YAML, so that dvc.lock is altered in the same way."""
    lock(chain, seed=0)
    file, folder = chain / name, chain / "artifacts/encoder"
    text = json.dumps(yaml.safe_load(file.read_text()))
    ignored = {
        "versions",
        "device",
        "schema",
        "cmd",
        "size",
        "nfiles",
        "git",
    }  # they are not compared
    count = 0
    for place in places(json.loads(text)):
        for new in (..., None, -1, "x", [], {}, ["x"], {"x": 1}):
            file.write_text(altered(text, place, new))
            try:
                link = trace(folder, chain)
            except UserError as error:
                assert name in str(error)
                continue
            assert isinstance(summary(link), str)
            count += 1
            if file.name == "provenance.json" and not ignored & set(place):
                assert not link.sound(), (place, new)
    assert count


def test_links_into_a_cache_are_not_followed(chain):
    """DVC links outputs into its cache where the cache's type is symlink."""
    (chain / "cache").mkdir()
    for file in [*(chain / "artifacts/data").iterdir(), *(chain / "artifacts/encoder").iterdir()]:
        moved = file.rename(chain / "cache" / f"{file.parent.name}-{file.name}")
        file.symlink_to(moved)
    link = trace(chain / "artifacts/encoder/weights", chain)
    assert link.sound() and len(link.steps()) == 2
    os.truncate(chain / "cache/data-manifest", 1)
    assert len(problems(trace(chain / "artifacts/encoder/weights", chain))) == 2


def test_a_lost_source_is_listed(chain):
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
    made_by = recipe(
        "train",
        "",
        MODULES["train"],
        {"seed": 0},
        [folder.parent.relative_to(chain) / "data"],
        chain,
    )
    assert json.dumps(record(made_by, folder, CPU)) == before


def test_the_project_is_found_from_below(root):
    assert find_root(root / "salmask" / "deep") == root.resolve()


def test_outside_a_project_says_so(tmp_path):
    with pytest.raises(UserError, match=r"no dvc\.yaml"):
        find_root(tmp_path)
