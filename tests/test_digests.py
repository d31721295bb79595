"""Which stages run again after which change of the code: the table of docs/upgrading.md."""

import ast
import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from salmask.code_digests import code_digest
from salmask.params.yaml_file import Params
from salmask.stage_modules import stage_keys, stage_modules
from tests.helpers.project import ROOT, TINY

PARAMS: dict[str, Any] = copy.deepcopy(TINY) | {
    "runs": {
        "plain": {},
        "blur": {"mask": {"name": "blur"}},
        "filtered": {"mask": {"name": "high_pass"}},
        "simclr": {"framework": {"name": "simclr"}},
    },
    "imports": {"theirs": {"path": "moco.pth", "arch": "resnet18", "layout": "moco"}},
    "transfer": {"flowers": {"name": "flowers102", "root": "flowers"}},
    "detect": {"scenes": {"data": {"name": "demo", "root": "x"}, "training": {"recipe": "voc"}}},
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A copy of the source code."""
    for package in ("salmask", "stages"):
        shutil.copytree(
            ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    return tmp_path


def digests(source: Path) -> dict[str, str]:
    """The digest of every stage but the report, which shows everything and takes seconds."""
    params = Params(PARAMS)
    keys = [key for key in stage_keys(params) if key != "report"]
    return {key: code_digest(stage_modules(params, key), source) for key in keys}


def changed(source: Path, change: Callable[[Path], None]) -> set[str]:
    """The keys whose digest a change of the source changes."""
    before = digests(source)
    change(source)
    after = digests(source)
    return {key for key in before if before[key] != after[key]}


def edit(name: str, old: str, new: str) -> Callable[[Path], None]:
    def change(source: Path) -> None:
        text = (source / name).read_text()
        assert old in text, f"{name} has no {old!r}"
        (source / name).write_text(text.replace(old, new, 1))

    return change


def all_of(stage: str) -> set[str]:
    return {key for key in stage_keys(Params(PARAMS)) if key.partition("/")[0] == stage}


@pytest.mark.parametrize(
    ("existing", "new"),
    [
        ("salmask/masks/blur.py", "salmask/masks/fresh.py"),
        ("salmask/frameworks/simsiam.py", "salmask/frameworks/fresh.py"),
        ("salmask/datasets/imagefolder.py", "salmask/datasets/fresh.py"),
        ("salmask/detection/datasets/coco.py", "salmask/detection/datasets/fresh.py"),
        ("salmask/saliency/localizers/vgg16.py", "salmask/saliency/localizers/fresh.py"),
        ("salmask/evaluate/knn.py", "salmask/evaluate/fresh.py"),
        ("salmask/encoders/layouts/moco.py", "salmask/encoders/layouts/fresh.py"),
    ],
)
def test_a_new_module_reruns_nothing(source: Path, existing: str, new: str) -> None:
    assert changed(source, lambda root: shutil.copy(root / existing, root / new)) == set()


def test_a_new_option_of_the_trainer_reruns_pretraining_only(source: Path) -> None:
    option = edit(
        "salmask/params/train.py", "    compile: bool", "    fresh: int = 0\n    compile: bool"
    )
    assert changed(source, option) == all_of("pretrain")


def test_reworded_errors_rerun_nothing(source: Path) -> None:
    assert changed(source, reword_errors) == set()


def reword_errors(source: Path) -> None:
    """Rewrites the texts of all errors in the source."""
    count = 0
    for path in source.rglob("*.py"):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
                node.exc.args[0] = ast.Constant("Something else is wrong.")
                count += 1
        path.write_text(ast.unparse(tree))
    assert count > 200


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("salmask/progress.py", "15.0", "5.0"),
        ("salmask/train/speed.py", "1e-9", "1e-8"),
        ("salmask/data/free_memory.py", "1024", "1000"),
        ("salmask/commands/doctor.py", "_SAMPLE = 48", "_SAMPLE = 49"),
        ("salmask/commands/costs.py", "60e12", "61e12"),
        ("salmask/report/page.html.j2", "<h1", "<h2"),
        ("salmask/evaluate/probe.py", "20, 0.07", "21, 0.07"),
        ("salmask/evaluate/unlabelled.py", "1e-7", "1e-5"),
        ("salmask/params/probe.py", "= 5", "= 6"),
        ("salmask/params/ranges.py", "8192", "4096"),
        ("salmask/params/mistakes.py", "did you mean", "perhaps"),
        ("salmask/frameworks/moco.py", "temperature: Positive", "temperature: float"),
        ("salmask/frameworks/moco.py", "import Finite, ", "import Few, Finite, "),
        ("salmask/masks/blur.py", "kernel: Kernel", "kernel: int"),
        ("salmask/collapse.py", "0.02", "0.03"),
    ],
)
def test_what_decides_no_result_reruns_nothing(source: Path, name: str, old: str, new: str) -> None:
    assert changed(source, edit(name, old, new)) == set()


@pytest.mark.parametrize("field", ["label", "extra_passes", "uneven_patches"])
def test_the_description_of_a_mask_reruns_nothing(source: Path, field: str) -> None:
    def change(root: Path) -> None:
        path = root / "salmask/masks/blur.py"
        tree = ast.parse(path.read_text())
        (call,) = (n for n in ast.walk(tree) if isinstance(n, ast.Call) and is_mask(n))
        call.keywords = [k for k in call.keywords if k.arg != field]
        call.keywords.append(ast.keyword(field, ast.Constant("another")))
        path.write_text(ast.unparse(tree))

    assert changed(source, change) == set()


def is_mask(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Name) and call.func.id == "Mask"


@pytest.mark.parametrize(
    ("name", "old", "new", "keys"),
    [
        ("salmask/detection/recipes.py", "0.02", "0.03", {"detect"}),
        ("salmask/masks/blur.py", "0.25", "0.26", {"pretrain/blur", "variance/blur"}),
        (
            "salmask/masks/high_pass.py",
            "0.25",
            "0.26",
            {"pretrain/filtered", "variance/filtered"},
        ),
        ("salmask/frameworks/simclr.py", "0.1", "0.2", {"pretrain/simclr"}),
        ("salmask/datasets/flowers102.py", "trnid", "tstid", {"transfer_data/flowers"}),
        ("salmask/evaluate/knn.py", "0.07", "0.08", {"evaluate/knn"}),
        ("salmask/encoders/layouts/moco.py", "encoder_q", "encoder_k", {"imported/theirs"}),
        ("salmask/train/lars.py", "0.9", "0.8", all_of("pretrain")),
        ("salmask/saliency/localizers/lite0.py", "127 / 255", "128 / 255", {"localizer"}),
    ],
)  # fmt: skip
def test_a_change_reruns_what_it_decides(
    source: Path, name: str, old: str, new: str, keys: set[str]
) -> None:
    assert changed(source, edit(name, old, new)) == keys
