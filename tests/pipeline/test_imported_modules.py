"""The digest of each stage covers every module that a real run of the stage imports."""

import itertools
from collections import defaultdict
from pathlib import Path

import pytest

from salmask.code_digests import WITHOUT_EFFECT, module_file, reached
from salmask.params.yaml_file import Params
from salmask.stage_modules import stage_keys, stage_modules

pytestmark = pytest.mark.pipeline

# Pretraining measures itself with evaluations. None of the layers below can import them.
FOR_PROBE = {"salmask.evaluate"} | {
    f"salmask.evaluate.{name}"
    for name in ("feature_cache", "features", "knn", "subsets", "unlabelled")
}
FOR_PROGRESS = {"salmask.distributed"}  # where nothing else imports it: only rank 0 shows progress


def key_of(command: str) -> str:
    """The key of the digest of a command such as `-m stages.pretrain --run plain`."""
    words = command.split()
    stage = words[words.index("-m") + 1].removeprefix("stages.")
    options = dict(itertools.pairwise(words))
    names = {
        "pretrain": "--run", "variance": "--run", "evaluate": "--protocol",
        "transfer_data": "--name", "detect_data": "--name", "imported": "--name",
    }  # fmt: skip
    return f"{stage}/{options[names[stage]]}" if stage in names else stage


def test_a_digest_covers_what_its_stage_imports(finished: Path) -> None:
    imported: dict[str, set[str]] = defaultdict(set)
    for line in (finished / "imports.txt").read_text().splitlines():
        command, module = line.split("\t")
        if "-m stages." in command and "stages.code" not in command:
            imported[key_of(command)].add(module)
    params = Params.read(finished / "params.yaml")
    assert set(imported) == {
        key for key in stage_keys(params) if key not in ("variance/plain",)
    }  # each stage ran
    for key, modules in imported.items():
        covered = reached(stage_modules(params, key), finished)
        ours = {name for name in modules if module_file(name, finished)}
        measuring = FOR_PROBE if key.startswith("pretrain/") else set()
        assert ours - set(covered) <= WITHOUT_EFFECT | FOR_PROGRESS | measuring, key
        assert len(ours & set(covered)) > 5, key
