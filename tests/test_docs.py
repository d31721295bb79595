"""What the documents tell people to write into params.yaml is accepted."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from salmask import frameworks
from salmask.datasets.download import DOWNLOADS
from salmask.datasets.layout import KNOWN
from salmask.datasets.registry import SOURCES, configured
from salmask.detection import datasets as annotated
from salmask.masks import strategies
from salmask.params.encoder import EncoderConfig
from salmask.params.train import TrainConfig
from salmask.params.values import Choice, check
from salmask.params.view import ViewConfig

DATA = (Path(__file__).parents[1] / "docs/data.md").read_text()
METHOD = (Path(__file__).parents[1] / "docs/method.md").read_text()
ENCODER = EncoderConfig("resnet10", width=4, stem="small2")


def mappings(heading: str) -> list[list[dict[str, Any]]]:
    """The YAML mappings in each row of the table under a heading."""
    section = METHOD.split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    found = [[yaml.safe_load(cell) for cell in re.findall(r"`({.*?})`", row)] for row in rows]
    return [row for row in found if row]


VIEWS, RECIPES = mappings("Augmentation of each framework"), mappings("Recipes")


def test_the_tables_are_found() -> None:
    assert len(VIEWS) == 5 and len(RECIPES) == 12


@pytest.mark.parametrize("row", VIEWS, ids=str)
def test_augmentations_are_accepted(row: list[dict[str, Any]]) -> None:
    (view,) = row
    check(view, ViewConfig, "view")


@pytest.mark.parametrize("row", RECIPES, ids=str)
def test_recipes_are_accepted(row: list[dict[str, Any]]) -> None:
    framework, train = row
    made = check(train, TrainConfig, "train")
    choice = Choice(framework.pop("name"), framework)
    with torch.device("meta"):
        built = frameworks.build(choice, ENCODER, made.batch, steps=1)
    strategies.build(Choice("none", {}), built.wiring, ViewConfig())


def test_options_that_it_names_are_accepted() -> None:
    told = re.findall(r"`({name: .*?})`", METHOD.split("## Options that are ablations")[1])
    mscn = yaml.safe_load(told[0])
    assert strategies.options_of(Choice(mscn.pop("name"), mscn))["extra_views"] == 0


@pytest.mark.parametrize("name", strategies.MASKS)
def test_every_mask_is_named(name: str) -> None:
    assert f"`{name}`" in METHOD


def test_every_known_set_is_in_the_table_of_data_sets() -> None:
    cells = [line.split("|") for line in DATA.splitlines() if line.startswith("| `")]
    sources = {name for row in cells for name in re.findall(r"`(\w+)`", row[1])}
    assert set(KNOWN) <= sources <= set(SOURCES)
    fetched = {name for row in cells for name in re.findall(r"`([\w-]+)`", row[4])}
    assert fetched | {"cifar10", "cifar100"} == set(DOWNLOADS)


def test_data_sets_of_the_examples_are_accepted() -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", DATA, re.DOTALL)
    told = yaml.safe_load(example)
    for section in [told["data"], *told["transfer"].values()]:
        configured(Choice(section.pop("name"), section), "data")


def test_sets_to_detect_in_are_accepted() -> None:
    text = (Path(__file__).parents[1] / "docs/evaluation.md").read_text()
    (told,) = [
        b for b in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL) if b.startswith("detect")
    ]
    sets = yaml.safe_load(told)["detect"]
    assert list(sets) == ["voc", "coco", "mine"]
    for name, options in sets.items():
        annotated.configured(Choice(options.pop("name"), options), name)
