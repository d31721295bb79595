"""The comment at the top of each suite lists what the paper leaves open and what was chosen.

A line of the list is `#   KEY: VALUE, reason`.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pytest
import yaml

from salmask.commands import suites
from salmask.frameworks import FRAMEWORKS
from salmask.masks.options import options_of
from salmask.params.names import run_names
from salmask.params.run import read_run
from salmask.params.values import bind
from salmask.params.yaml_file import Params
from tests.helpers.project import ROOT

# suites with the recipe of a paper
NAMES = [
    name
    for name in suites.names(ROOT)
    if re.match("chin|mscn|mixmask", name) and not name.endswith(("-small", "-imagenette"))
]
ITEM = re.compile(r"#   ([a-z0-9_.]+): (\[[^\]]*\]|[^,\s]+)")


@dataclass(frozen=True)
class Resolved:
    """All values of a run by key, such as `train.lr`, and what decides the rules below."""

    suite: str
    values: Mapping[str, Any]
    framework: str
    mask: str

    def small(self) -> bool:
        return self.suite.startswith("mixmask") and self.values["view.size"] <= 64

    def simclr(self, paper: str) -> bool:
        return self.framework == "simclr" and self.suite.startswith(paper)

    def ablation(self) -> bool:
        return self.suite in ("chin-table4", "chin-table6", "chin-table7", "chin-table8")

    def high_pass_masks(self) -> bool:
        return self.mask == "high_pass" and self.values["mask.ratio"] != [0, 0]

    def mscn_masks(self) -> bool:
        return self.mask == "mscn" and self.suite != "mscn-preprocess"  # its text has all values


# The keys that no paper gives, and the runs for which a suite chooses their value.
OPEN: list[tuple[str, Callable[[Resolved], bool]]] = [
    ("framework.temperature", lambda run: run.suite.startswith("chin")),
    ("framework.temperature", lambda run: run.small() and run.framework == "simclr"),
    ("framework.bn_group", lambda run: run.framework == "moco" or not run.small()),
    ("framework.penalty", lambda run: bool(run.values.get("mask.hard_negative"))),
    ("framework.hidden", lambda run: run.small() and run.framework == "simsiam"),
    ("framework.head", lambda run: run.small() and run.framework == "moco"),
    ("framework.symmetric", lambda run: run.small() and run.framework == "moco"),
    ("train.weight_decay", lambda run: run.framework in ("simclr", "byol")),
    ("train.batch", Resolved.ablation),
    ("train.lr", Resolved.ablation),
    ("train.lr", lambda run: run.suite.startswith("mixmask") and not run.small()),
    ("train.lr", lambda run: run.suite == "chin-table1-adios" or run.framework == "supervised"),
    ("train.warmup_epochs", lambda run: run.small() and run.framework != "simsiam"),
    ("view.size", Resolved.ablation),
    ("view.crop", Resolved.small),
    ("view.blur_p", Resolved.small),
    ("view.shorter", lambda run: run.small() or run.ablation()),
    ("view.jitter", lambda run: run.simclr("chin") or (run.mscn_masks() and run.simclr("mscn"))),
    ("mask.lr", lambda run: run.mask == "adios"),
    ("mask.focal", Resolved.high_pass_masks),
    ("mask.channel", Resolved.high_pass_masks),
    ("mask.noise", Resolved.high_pass_masks),
    ("mask.channel", Resolved.mscn_masks),
    ("mask.noise", Resolved.mscn_masks),
    ("mask.key_ratio", lambda run: run.mscn_masks() and run.suite.startswith(("mscn", "mix"))),
]


def items(name: str) -> list[tuple[str, Any]]:
    """(key, value) of each line of the list at the top of a suite."""
    listed = []
    for line in (ROOT / f"suites/{name}.yaml").read_text().splitlines():
        if not line.startswith("#"):
            break
        if match := ITEM.match(line):
            listed.append((match[1], yaml.safe_load(match[2])))
    return listed


def plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def resolved(name: str, params: Params, run: str) -> Resolved:
    config = read_run(params, run)
    sections = {
        "framework": bind(
            FRAMEWORKS[config.framework.name].__init__, config.framework.options, "x"
        ),
        "mask": options_of(config.mask),
        "train": asdict(config.train),
        "view": asdict(config.view),
    }
    values = {
        f"{s}.{key}": plain(v) for s, options in sections.items() for key, v in options.items()
    }
    return Resolved(name, values, config.framework.name, config.mask.name)


def varied(params: Params) -> dict[str, list[str]]:
    """run -> the keys that its grid varies."""
    return {
        run: sweep["keys"]
        for sweep in params.raw("sweeps").values()
        for members in sweep["settings"].values()
        for run in members
    }


@pytest.mark.parametrize("name", NAMES)
def test_each_key_that_the_paper_leaves_open_is_listed_with_its_value(name: str) -> None:
    params, listed = suites.load(ROOT, name), items(name)
    axes, runs = varied(params), [resolved(name, params, run) for run in run_names(params)]
    for run_name, run in zip(run_names(params), runs, strict=True):
        for key, applies in OPEN:
            if applies(run) and key not in axes.get(run_name, []):
                assert (key, run.values[key]) in listed, f"{run_name}: {key}: {run.values[key]}"
    evaluate = params.raw("evaluate")
    if evaluate["chosen"]["linear"] and "lr" in evaluate["linear"]:
        assert ("evaluate.linear.lr", evaluate["linear"]["lr"]) in listed
    if evaluate["knn"]["temperature"] != 0.07:
        assert ("evaluate.knn.temperature", evaluate["knn"]["temperature"]) in listed
    if name.startswith("chin"):
        for detector in params.raw("detect").values():
            frozen = detector["training"].get("freeze_encoder", False)
            assert ("detect.training.freeze_encoder", frozen) in listed


@pytest.mark.parametrize("name", NAMES)
def test_each_value_in_the_list_is_that_of_a_run(name: str) -> None:
    params, listed = suites.load(ROOT, name), items(name)
    assert listed
    runs = [resolved(name, params, run) for run in run_names(params)]
    for key, value in listed:
        if key.partition(".")[0] in ("framework", "mask", "train", "view"):
            assert any(key in r.values and r.values[key] == value for r in runs), (key, value)


def test_two_readings_of_a_paper_are_named() -> None:
    for name in ("mixmask-frameworks", "mixmask-permutation", "mixmask-budget"):
        text = " ".join((ROOT / f"suites/{name}.yaml").read_text().replace("#", "").split())
        assert "Table 8 has two values, 5e-4 as weight decay and 1e-6 as L2 of Adam" in text
    for name in ("chin-table2-3", "chin-table2-frozen", "chin-table5", "chin-repository"):
        text = " ".join((ROOT / f"suites/{name}.yaml").read_text().replace("#", "").split())
        assert '"keeping the feature encoder fixed"' in text and "MoCo, which trains it" in text
