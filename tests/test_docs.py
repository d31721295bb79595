"""The examples in the documentation are accepted, its tables are complete, its links work."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import salmask
from salmask import frameworks
from salmask.commands.cli import main
from salmask.datasets import DATASETS
from salmask.datasets.download import downloads
from salmask.datasets.reader import dataset_reader
from salmask.detection.datasets import configured_reader
from salmask.detection.protocol import training_options
from salmask.encoders.importing import Import
from salmask.masks import MASKS
from salmask.masks.options import options_of
from salmask.masks.wiring import wire_mask
from salmask.params.encoder import EncoderConfig
from salmask.params.train import TrainConfig
from salmask.params.values import Choice, check
from salmask.params.view import ViewConfig

ROOT = Path(__file__).parents[1]
DATA = (ROOT / "docs/data.md").read_text()
METHOD = (ROOT / "docs/method.md").read_text()
ENCODER = EncoderConfig("resnet10", width=8, stem="small2")


def mappings(heading: str) -> list[list[dict[str, Any]]]:
    """The YAML mappings in each row of the table under a heading."""
    section = METHOD.split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    parsed = [[yaml.safe_load(cell) for cell in re.findall(r"`({.*?})`", row)] for row in rows]
    return [row for row in parsed if row]


VIEWS, RECIPES = mappings("Augmentation of each framework"), mappings("Recipes")


def test_the_tables_are_found() -> None:
    assert len(VIEWS) == 5 and len(RECIPES) == 13


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
        built = frameworks.build(choice, ENCODER, made.batch)
    wire_mask(Choice("none", {}), built.wiring, ViewConfig())


def test_options_that_it_names_are_accepted() -> None:
    examples = re.findall(r"`({name: .*?})`", METHOD.split("## Options that are ablations")[1])
    mscn = yaml.safe_load(examples[0])
    assert options_of(Choice(mscn.pop("name"), mscn))["extra_views"] == 0


@pytest.mark.parametrize("name", MASKS)
def test_every_mask_is_named(name: str) -> None:
    assert f"`{name}`" in METHOD


def test_every_known_set_is_in_the_table_of_data_sets() -> None:
    cells = [line.split("|") for line in DATA.splitlines() if line.startswith("| `")]
    assert {name for row in cells for name in re.findall(r"`(\w+)`", row[1])} == set(DATASETS)
    fetched = {name for row in cells for name in re.findall(r"`([\w-]+)`", row[4])}
    assert fetched | {"cifar10", "cifar100"} == set(downloads())


def test_data_sets_of_the_examples_are_accepted() -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", DATA, re.DOTALL)
    params = yaml.safe_load(example)
    for section in [params["data"], *params["transfer"].values()]:
        dataset_reader(Choice(section.pop("name"), section), "data")


def test_sets_to_detect_in_are_accepted() -> None:
    text = (ROOT / "docs/evaluation.md").read_text()
    examples = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (example,) = [example for example in examples if example.startswith("detect")]
    sets = yaml.safe_load(example)["detect"]
    assert list(sets) == ["voc", "coco", "mine"]
    for name, section in sets.items():
        data = section["data"]
        configured_reader(Choice(data.pop("name"), data), name)
        training_options(section["training"], name)


PAGES = sorted([*(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text())
    missing = [name for name in targets if "://" not in name and not (page.parent / name).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page: Path) -> None:
    folders = "salmask|tests|slurm|stages|suites|benchmarks|docs"
    names = re.findall(rf"`((?:{folders})/[\w./-]+)`", page.read_text())
    assert [name for name in names if not (ROOT / name).exists()] == []


def test_the_index_lists_every_page() -> None:
    index = (ROOT / "docs/README.md").read_text()
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert {name for name in pages if f"]({name})" not in index} == set()


def test_the_readme_is_short() -> None:
    assert (ROOT / "README.md").read_text().count("\n") < 150


def test_the_table_of_commands_is_complete() -> None:
    page = (ROOT / "docs/commands.md").read_text()
    assert set(re.findall(r"^\| `salmask ([\w-]+)", page, re.MULTILINE)) == set(main.commands)


def test_imports_of_the_example_are_accepted() -> None:
    page = (ROOT / "docs/imports-and-export.md").read_text()
    (example,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    for options in yaml.safe_load(example)["imports"].values():
        check(options, Import, "imports")


def test_locked_versions_are_those_of_packages_that_the_project_needs() -> None:
    text = (ROOT / "requirements.lock").read_text()
    pins = [line.split("==") for line in text.splitlines() if not line.startswith("#")]
    locked = {canonicalize_name(name): version for name, version in pins}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for requirement in map(Requirement, project["dependencies"]):
        version = locked[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), requirement


def test_the_version_is_the_same_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert project["version"] == citation["version"] == salmask.__version__
    assert f"## {project['version']}\n" in (ROOT / "CHANGELOG.md").read_text()
