"""`salmask check` is the whole truth: what it accepts can be built."""

import contextlib
import copy
import math
from dataclasses import fields
from inspect import signature
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from salmask import frameworks
from salmask.commands.check import validate
from salmask.data.photometry import apply_photometry
from salmask.datasets import demo
from salmask.datasets.reader import FilePolicy
from salmask.encoders.backbones import build_encoder
from salmask.errors import UserError
from salmask.evaluate import EVALUATIONS
from salmask.frameworks import FRAMEWORKS
from salmask.masks import MASKS
from salmask.masks.wiring import wire_mask
from salmask.params.encoder import EncoderConfig
from salmask.params.names import evaluation_folders
from salmask.params.ranges import Seed
from salmask.params.run import RunConfig, read_run
from salmask.params.saliency import SaliencyConfig
from salmask.params.train import TrainConfig
from salmask.params.view import ViewConfig
from salmask.params.yaml_file import Params
from salmask.randomness import Draws
from salmask.shapes import Pair
from salmask.stage_modules import stage_keys
from tests.helpers.project import TINY

GUIDED = ["none", "blur", "mean", "high_pass"]
SECTIONS = {"encoder": EncoderConfig, "view": ViewConfig, "train": TrainConfig}
ODD: list[Any] = [
    *(None, True, -1, 0, 1, 2, 3, 5, 7, 8, 16, 33, 10**12, 10**30, 0.0, 0.1, 0.5, 1.5, -0.5, 1e-30),
    *(1e9, math.nan, math.inf, "", "x", "resnet18", "convnext_tiny", "mnasnet0_5", [], [0], [1]),
    *([0.1, 0.2], [0.5, 0.1], [2, 1], [1, 2, 3], [0.4] * 4, [[1]], {}, {"a": 1}, {"count": 3}),
    *({"ratio": [0, 1]}, {"ratio": 0.5}),
]


def options(function: Any) -> dict[str, Any]:
    """The keyword-only arguments of a function or class, with their types."""
    function = function.__init__ if isinstance(function, type) else function
    keys = [p.name for p in signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    hints = get_type_hints(function, include_extras=True)
    return {name: hints[name] for name in keys}


def values_of(kind: Any) -> tuple[list[Any], list[Any]]:
    """Values that a type accepts, and all values."""
    parts = [kind, *get_args(kind)]
    named = [value for p in parts if get_origin(p) is Literal for value in get_args(p)]
    adapter, accepted = TypeAdapter(kind), []
    for value in (every := [*ODD, *named]):
        with contextlib.suppress(ValidationError):
            adapter.validate_python(value)
            accepted.append(value)
    return accepted or every, every


@st.composite
def projects(draw: Any) -> dict[str, Any]:
    """Parameters with one mask and one framework, and a few values replaced by others: half of them
    of the right type and range."""
    values: dict[str, Any] = copy.deepcopy(TINY)
    framework = draw(st.sampled_from(list(FRAMEWORKS)))
    fitting = [n for n, m in MASKS.items() if framework in (m.frameworks or (framework,))]
    mask = draw(st.sampled_from(GUIDED if framework == "supervised" else fitting))
    values["mask"], values["framework"] = {"name": mask}, {"name": framework, "bn_group": 16}
    if framework == "supervised":
        values["framework"]["classes"] = 10
    if mask in GUIDED[1:] and framework not in ("moco", "simclr"):
        values["mask"]["hard_negative"] = None
    kinds: dict[tuple[str, ...], Any] = {
        **{(s, f.name): f.type for s, c in SECTIONS.items() for f in fields(c)},
        **{("saliency", field.name): field.type for field in fields(SaliencyConfig)},
        **{("data", field.name): field.type for field in fields(FilePolicy)},
        **{("data", name): kind for name, kind in options(demo.read).items() if name != "root"},
        **{("mask", n): k for n, k in options(MASKS[mask].function).items()},
        **{("framework", n): k for n, k in options(FRAMEWORKS[framework]).items()},
        **{
            ("evaluate", protocol, name): kind
            for protocol in EVALUATIONS
            if EVALUATIONS[protocol].own_section
            for name, kind in options(EVALUATIONS[protocol].run).items()
        },
        ("seed",): Seed,
    }
    any_value = draw(st.booleans())
    for key in draw(st.lists(st.sampled_from(list(kinds)), max_size=4)):
        section = values
        for part in key[:-1]:
            section = section[part]
        section[key[-1]] = draw(st.sampled_from(values_of(kinds[key])[any_value]))
    return values


def build(config: RunConfig) -> None:
    """The networks from shapes alone, and the views of two images."""
    with torch.device("meta"):
        build_encoder(config.encoder)
        model = frameworks.build(config.framework, config.encoder, config.train.batch)
    wired = wire_mask(config.mask, model.wiring, config.view)
    side, grid = config.view.size, config.view.grid
    draws = Draws.of(0, 0, torch.arange(2))
    images = torch.rand(2, 3, side, side)
    query, key = (apply_photometry(images, draws, name, config.view) for name in ("query", "key"))
    maps = torch.rand(2, grid, grid) if wired.reads_saliency else None
    pair = Pair(query, key, maps, maps, tuple([query] * wired.extra_views))
    wired.views(pair, draws, torch.arange(2))


@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(projects())
def test_what_check_accepts_can_be_built(values: dict[str, Any]) -> None:
    params = Params(values)
    try:
        validate(params)
    except UserError as error:
        assert str(error)
        return
    config = read_run(params, "plain")
    if config.view.size <= 64:
        build(config)


@pytest.mark.parametrize("name", list(MASKS))
def test_every_mask_is_accepted_with_some_framework(name: str) -> None:
    needs = {"mask": {"name": name}, "runs": {"a": {}}}
    validate(Params(TINY | needs))


def paths(values: Any, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The keys of a nested mapping, at all depths."""
    if not isinstance(values, dict):
        return []
    keys = [(*prefix, key) for key in values]
    return keys + [path for key in keys for path in paths(values[key[-1]], key)]


SCENES = {"data": {"name": "demo", "root": "x"}, "training": {"recipe": "voc", "lr": 0.1}}
WHOLE: dict[str, Any] = TINY | {
    "probe": {"every": 1, "images": 16},
    "transfer": {"shapes": TINY["data"]},
    "detect": {"scenes": SCENES},
    "imports": {"theirs": {"path": "x.pth", "arch": "resnet18", "size": 32, "std": [1, 1, 1]}},
    "tables": {"chin table1": {"columns": {}, "rows": {}}},
    "sweeps": {"grid": {"keys": ["train.lr"], "settings": {"a": ["plain"]}}},
}


@given(st.data())
def test_any_value_anywhere_is_accepted_or_refused(data: st.DataObject) -> None:
    """By `check`, and by the stage `code`, which reads the names."""
    values = copy.deepcopy(WHOLE)
    for path in data.draw(st.lists(st.sampled_from(paths(WHOLE)), min_size=1, max_size=2)):
        section: Any = values
        for part in path[:-1]:
            section = section.get(part) if isinstance(section, dict) else None
        if isinstance(section, dict):
            kind = data.draw(st.sampled_from(["replace", "remove", "rename", "add"]))
            if kind == "replace":
                section[path[-1]] = data.draw(st.sampled_from(ODD))
            elif kind == "add":
                section[data.draw(st.sampled_from(["", "x", 1, None, "a.b", "name"]))] = 1
            else:
                old = section.pop(path[-1], None)
                section |= {f"{path[-1]}x": old} if kind == "rename" else {}
    for read in (validate, stage_keys, evaluation_folders):
        with contextlib.suppress(UserError):
            read(Params(values))
