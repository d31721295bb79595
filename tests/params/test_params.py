from pathlib import Path

import pytest
import yaml

from salmask.errors import UserError
from salmask.params.names import chosen_evaluations, run_names
from salmask.params.overlay import in_run, merge, run_seed
from salmask.params.probe import ProbeConfig, read_probe
from salmask.params.run import read_run
from salmask.params.saliency import SaliencyConfig
from salmask.params.train import TrainConfig
from salmask.params.values import Choice, bind, check, pick
from salmask.params.view import ViewConfig
from salmask.params.yaml_file import Params
from salmask.params.yaml_lines import with_lines

VALUES = {
    "seed": 3,
    "encoder": {"arch": "resnet10", "width": 8, "stem": "small"},
    "view": {"size": 64, "grid": 8, "crop": [0.3, 1.0]},
    "train": {"epochs": 2, "warmup_epochs": 1, "batch": 4},
    "mask": {"name": "blur", "kernel": 31, "sigma": 10.0},
    "framework": {"name": "moco", "dim": 16},
    "runs": {
        "plain": {},
        "other": {
            "mask": {"name": "mean"},
            "train": {"epochs": 5},
            "framework": {"dim": 32},
            "view": {"crop": [0.5, 0.9]},
        },
    },
}


def params(**changes) -> Params:
    return Params(VALUES | changes)


def with_run(entry) -> Params:
    return params(runs={"bad": entry})


def test_a_run_is_its_entries_over_the_common_sections():
    plain, other = (read_run(params(), name) for name in ("plain", "other"))
    assert (plain.train.epochs, plain.train.batch, plain.view.size) == (2, 4, 64)
    assert plain.mask == Choice("blur", {"kernel": 31, "sigma": 10.0})
    assert (other.train.epochs, other.train.batch) == (5, 4)
    assert other.view.crop == (0.5, 0.9)
    assert other.mask == Choice("mean", {})  # without the options of blur
    assert other.framework == Choice("moco", {"dim": 32})
    assert other.encoder == plain.encoder


@pytest.mark.parametrize(
    ("common", "override", "expected"),
    [
        ({"a": 1, "b": 2}, {}, {"a": 1, "b": 2}),
        ({"a": 1, "b": 2}, {"b": 3, "c": 4}, {"a": 1, "b": 3, "c": 4}),
        ({"a": {"x": 1, "y": 2}}, {"a": {"y": 3}}, {"a": {"x": 1, "y": 3}}),
        ({"a": None}, {"a": {"y": 3}}, {"a": {"y": 3}}),
        ({"a": {"x": 1}}, {"a": None}, {"a": None}),
        ({"name": "blur", "sigma": 1}, {"sigma": 2}, {"name": "blur", "sigma": 2}),
        ({"name": "blur", "sigma": 1}, {"name": "mean"}, {"name": "mean"}),
        ({"name": "blur", "sigma": 1}, {"name": "blur"}, {"name": "blur", "sigma": 1}),
    ],
)
def test_merge(common, override, expected):
    before = repr(common)
    assert merge(common, override) == expected
    assert repr(common) == before


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"train": {"lrr": 0.1}}, "train.lrr: no such key (did you mean `lr`?); allowed: epochs, "),
        ({"train": {"lr": "fast"}}, 'train.lr: must be a number of at least 0, got "fast"'),
        ({"train": {"epochs": -1}}, "train.epochs: must be a whole number from 0 to 1 billion, go"),
        (
            {"train": {"optimizer": "lion"}},
            'train.optimizer: must be `sgd`, `lars`, `adam` or `adamw`, got "lion"',
        ),
        (
            {"train": {"epochs": 5, "warmup_epochs": 5.5}},
            "train.warmup_epochs: 5.5 is longer than the training (epochs 5)",
        ),
        ({"train": {"lr": -0.1}}, "train.lr: must be a number of at least 0, got -0.1"),
        ({"train": {"lr": float("nan")}}, "train.lr: must be a number of at least 0, got NaN"),
        ({"train": {"momentum": 2}}, "train.momentum: must be a number of at least 0 and below 1,"),
        ({"train": {"milestones": [1]}}, "train.milestones: [1] need schedule: step, not cosine"),
        ({"train": {"schedule": "step"}}, "train.schedule: step needs milestones"),
        (
            {"train": {"schedule": "step", "milestones": [6, 3], "epochs": 9}},
            "got [6, 3]: each number must be larger than the one before",
        ),
        (
            {"train": {"schedule": "step", "milestones": [3, 9], "epochs": 9}},
            "train.milestones: must stay below epochs 9, got [3, 9]",
        ),
        (
            {"train": {"schedule": "step", "milestones": [0]}},
            "must be a list of values, each a whole number from 1 to 1 billion, got [0]",
        ),
        ({"train": None}, "train: must be a mapping, got null"),
        (
            {"encoder": {"stem": "big"}},
            "encoder.stem: must be `imagenet`, `small` or `small2`, got",
        ),
        ({"view": {"grid": 65}}, "view.grid: 65 is larger than size 64, in px"),
        ({"view": {"flip": 1.5}}, "view.flip: must be a number from 0 to 1, got 1.5"),
        ({"view": {"blur_p": 2}}, "view.blur_p: must be a number from 0 to 1, or [query, key], go"),
        ({"view": {"blur_p": [1, 0.1, 0.2]}}, "got [1, 0.1, 0.2]"),
        ({"view": {"crop": 0.3}}, "view.crop: must be [low, high], two numbers above 0 up to 1, "),
        ({"view": {"crop": [0.9, 0.2]}}, "got [0.9, 0.2]: the first number is the larger one"),
        ({"view": {"crop": [0.0, 1.0]}}, "two numbers above 0 up to 1, got [0.0, 1.0]"),
        ({"view": {"aspect": [2, 1]}}, "view.aspect: must be [low, high], two numbers above 0, g"),
        ({"view": {"blur_sigma": [0, 1]}}, "two numbers above 0, got [0, 1]"),
        (
            {"view": {"jitter": [0.4, 0.4, 0.4, 0.6]}},
            "the hue at most 0.5, got [0.4, 0.4, 0.4, 0.6]",
        ),
        ({"trian": {}}, "trian: no such key (did you mean `train`?); allowed: encoder, view, "),
        ({"train.lr": 0.01}, "train.lr: write it as `train: {lr: 0.01}`"),
        ({"train.lr": [0.01, 0.1]}, "train.lr: a grid is expanded by `salmask suite NAME`"),
    ],
    ids=str,
)
def test_an_error_names_key_value_and_allowed_values(entry, message):
    with pytest.raises(UserError) as error:
        read_run(with_run(entry), "bad")
    (line,) = str(error.value).splitlines()
    assert line.startswith("params.yaml: runs.bad.") and message in line, line


def test_all_mistakes_of_a_run_are_named_at_once_where_they_are():
    wrong = params(
        train={"epochs": -1, "lr": "x"},
        view={"size": 64, "grid": 8, "flip": 3},
        runs={"a": {"train": {"lr": 0}, "framework": {"name": "moco", "dim": 0}}, "b": {}},
    )
    with pytest.raises(UserError) as error:
        read_run(wrong, "a")
    places = [line.split(": ")[1] for line in str(error.value).splitlines()]
    assert places == ["view.flip", "train.epochs"]  # the run has an lr of its own
    with pytest.raises(UserError) as error:
        read_run(wrong, "b")
    assert "params.yaml: train.lr: must be a number" in str(error.value)


def test_an_option_of_another_mask_than_the_common_one_is_the_runs():
    wrong = params(
        mask={"name": "mean", "hard_negative": None},
        runs={"a": {"mask": {"name": "blur"}}, "b": {"mask": {"name": "mean"}}, "c": {"mask": 5}},
    )
    for run, place in (("a", "runs.a.mask"), ("b", "mask"), ("c", "mask")):
        with (
            pytest.raises(
                UserError, match=rf"^params\.yaml: {place}\.hard_negative: x \(run {run}"
            ),
            in_run(wrong, run),
        ):
            raise UserError("mask.hard_negative: x")


@pytest.mark.parametrize(
    "entry", [{"mask": "blur"}, {"train": 5}, {"mask": None}, ["train"], 7], ids=str
)
def test_a_run_entry_that_is_no_mapping_is_a_users_mistake(entry):
    with pytest.raises(UserError, match=r"runs\.bad"):
        read_run(with_run(entry), "bad")


def test_a_common_section_that_is_no_mapping_is_a_users_mistake():
    with pytest.raises(UserError, match="view"):
        read_run(params(view=5), "plain")


@pytest.mark.parametrize(
    "name",
    ["moco.v2", "MoCo", "a b", "a_b", "", "ä", "a;b", "$(b)", "a\n", "..", "-a", "'a'", "a" * 101],
)
def test_a_run_name_that_dvc_cannot_use_is_refused(name):
    with pytest.raises(UserError, match="a-z, 0-9 and -"):
        run_names(params(runs={name: {}}))


def test_run_names_keep_their_order():
    assert run_names(params(runs={"b-2": {}, "a": {}, "10": {}})) == ["b-2", "a", "10"]


def test_a_run_named_by_a_number_is_refused():
    """YAML reads `1:` as a number, which no dotted key would find again."""
    numbered = Params(yaml.safe_load("runs: {1: {}}"))
    with pytest.raises(UserError, match=r"runs\.1: a name is made of"):
        run_names(numbered)


@pytest.mark.parametrize("runs", [{}, None, ["a"]])
def test_runs_must_name_at_least_one(runs):
    with pytest.raises(UserError, match="at least one"):
        run_names(params(runs=runs))


@pytest.mark.parametrize("key", ["train", "mask", "framework", "runs"])
def test_a_missing_section_is_named(key):
    values = {k: v for k, v in VALUES.items() if k != key}
    with pytest.raises(UserError, match=rf"params\.yaml: {key}.*: is missing"):
        read_run(Params(values), "plain")


def test_a_missing_run_is_named():
    with pytest.raises(UserError, match=r"runs\.absent: is missing"):
        read_run(params(), "absent")


def test_what_was_read_is_recorded_with_its_value():
    read = params()
    assert read.reads == {}
    read.seed()
    assert read.reads == {"seed": 3}
    read_run(read, "other")
    sections = {"encoder", "view", "mask", "framework", "train"}
    assert set(read.reads) == {"seed", "runs.other"} | sections
    assert read.reads["runs.other"] == VALUES["runs"]["other"]
    assert read.reads["train"] == VALUES["train"]


def test_a_runs_own_seed_is_that_of_its_pretraining_alone():
    read = params(runs={"plain": {}, "again": {"seed": 8}, "wrong": {"seed": [1, 2]}})
    assert (run_seed(read, "plain"), run_seed(read, "again"), read.seed()) == (3, 8, 3)
    assert set(read.reads) == {"seed", "runs.plain", "runs.again"}  # the keys in dvc.yaml
    assert read_run(read, "again").train == read_run(read, "plain").train
    with pytest.raises(UserError, match=r"runs\.wrong\.seed: .*grid"):
        run_seed(read, "wrong")


def test_the_probe_is_optional_and_not_recorded_as_read():
    given = params(probe={"images": 50})
    assert read_probe(given) == ProbeConfig(every=5, images=50) and given.reads == {}
    assert read_probe(params()) is read_probe(params(probe=None)) is None


@pytest.mark.parametrize("section", [{"every": 0}, {"images": 1}, {"epochs": 5}, 5], ids=str)
def test_a_wrong_probe_is_refused(section):
    with pytest.raises(UserError, match=r"params\.yaml: probe"):
        read_probe(params(probe=section))


def test_a_wrong_seed_is_refused():
    for seed in ("x", -1, 2**32, None, 0.5):
        with pytest.raises(
            UserError, match=r"seed: must be a whole number from 0 to 4,294,967,295"
        ):
            params(seed=seed).seed()


@pytest.mark.parametrize("value", ["blur", None, {}, {"name": 3}])
def test_a_choice_needs_a_name(value):
    with pytest.raises(UserError, match="mask: must be a mapping with a `name`"):
        params(mask=value).choice("mask")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"- a\n- b\n", r'must be a mapping of sections, got \["a", "b"\]'),
        (b"a: [1\n", r"params\.yaml, line 2 is not valid YAML: "),
        (b"", "must be a mapping of sections, got null"),
        ("a: 1".encode("utf-16"), "is not UTF-8 text: save it as UTF-8"),
        (
            b"runs:\n  a: {}\n  b: {}\n  a: {}\n",
            r"yaml, line 4: runs\.a: it is there already, in l",
        ),
        (b"a: 1\nb:\n  c: &x {d: 1}\n  e: *x\na: 2\n", "line 5: a: it is there already, in line 1"),
        (b"? [a, b]\n: 1\n", "is not valid YAML"),
        (b"[" * 9999, "is not valid YAML"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused(tmp_path, content, message):
    (tmp_path / "params.yaml").write_bytes(content)
    with pytest.raises(UserError, match=message):
        Params.read(tmp_path / "params.yaml")


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(UserError, match="not found"):
        Params.read(tmp_path / "params.yaml")


def test_messages_name_the_line(tmp_path, monkeypatch):
    text = "train:\n  lr: 1\n  epochs: 2\nruns:\n  a:\n    train:\n      lr: x\n"
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(text)
    named = {
        "params.yaml: runs.a.train.lr: wrong": "params.yaml, line 7: runs.a.train.lr: wrong",
        "params.yaml: train.epochs: wrong": "params.yaml, line 3: train.epochs: wrong",
        "params.yaml: train.batch: is missing": "params.yaml, line 1: train.batch: is missing",
        "params.yaml: view: is missing": "params.yaml: view: is missing",
        "other.yaml: train: wrong": "other.yaml: train: wrong",
        "wrong": "wrong",
    }
    assert with_lines("\n".join(named)).split("\n") == list(named.values())


def test_a_file_is_read(tmp_path):
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(VALUES))
    assert read_run(Params.read(tmp_path / "params.yaml"), "plain") == read_run(params(), "plain")


def _function(pair, *, kernel: int = 31, path: Path | None = None, sigma: float) -> None:
    """What `bind` takes as a schema: its keyword-only arguments."""


def test_bind_fills_in_defaults_and_converts():
    bound = bind(_function, {"sigma": 2, "path": "a/b"}, "mask")
    assert bound == {"kernel": 31, "path": Path("a/b"), "sigma": 2.0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigma": 1, "kernl": 3}, "mask.kernl: no such key (did you mean `kernel`?); allowed: "),
        ({"sigma": "wide"}, 'mask.sigma: must be a number, got "wide"'),
        ({}, "mask.sigma: is missing: a number"),
        ({"sigma": 1, "pair": 3}, "mask.pair: no such key"),
        ({"sigma": 1, "path": [1]}, "mask.path: must be a path or null, got [1]"),
    ],
    ids=str,
)
def test_bind_reports_options_that_do_not_fit(options, message):
    with pytest.raises(UserError) as error:
        bind(_function, options, "mask")
    assert str(error.value).startswith(message)


def test_pick_lists_the_known_names_and_the_nearest():
    message = r"mask\.name: no `bluur` here; choose from blur, mean \(did you mean `blur`\?\)"
    with pytest.raises(UserError, match=message):
        pick({"blur": 1, "mean": 2}, "bluur", "mask.name")


def test_configurations_are_frozen():
    with pytest.raises(AttributeError):
        check({}, TrainConfig, "train").lr = 1


@pytest.mark.parametrize(("size", "grid"), [(224, 7), (224, 48), (64, 4), (32, 32), (32, 1)])
def test_grids_up_to_the_size_of_the_view_are_accepted(size, grid):
    assert ViewConfig(size=size, grid=grid).grid == grid
    with pytest.raises(ValueError, match=f"grid {size + 1} is larger than size {size}, in px"):
        ViewConfig(size=size, grid=size + 1)


def test_evaluations_cannot_crop_more_than_the_resized_image():
    assert check({"size": 32, "grid": 4, "shorter": 32}, ViewConfig, "view").shorter == 32
    with pytest.raises(UserError, match="shorter: 31 is less than size 32"):
        check({"size": 32, "grid": 4, "shorter": 31}, ViewConfig, "view")


def test_chances_of_one_view_or_of_two_are_accepted():
    read = params(view={"blur_p": [1, 0.1], "solarize_p": 0}).section("view", ViewConfig)
    assert (read.blur_p, read.solarize_p, ViewConfig().blur_p) == ((1.0, 0.1), 0.0, 0.5)


@pytest.mark.parametrize(
    "train",
    [
        {"epochs": 10},  # equal to the default warm-up
        {"lr": 0, "epochs": 1, "warmup_epochs": 0},
        {"epochs": 0, "schedule": "step", "milestones": [120, 160]},  # nothing is trained
        {"schedule": "step", "milestones": [120, 160]},
        {"schedule": "step", "milestones": [1], "epochs": 2, "warmup_epochs": 0, "gamma": 0.2},
        {"schedule": "constant", "optimizer": "lars"},
    ],
    ids=str,
)
def test_schedules_that_can_be_run_are_accepted(train):
    read = params(train=train).section("train", TrainConfig)
    assert list(read.milestones) == train.get("milestones", [])


def test_the_section_of_saliency_has_defaults():
    config = params(saliency={}).section("saliency", SaliencyConfig)
    assert (config.levels, config.correction, config.precision) == (
        (224, 320, 448),
        1024,
        "float32",
    )
    assert (config.shard_rows, config.batch) == (None, 32)


def test_large_sets_have_larger_shards():
    config = params(saliency={}).section("saliency", SaliencyConfig)
    sizes = {rows: config.rows_per_shard(rows) for rows in (1, 131_072, 131_073, 1_281_167)}
    assert sizes == {1: 1024, 131_072: 1024, 131_073: 2048, 1_281_167: 16_384}
    fixed = params(saliency={"shard_rows": 7}).section("saliency", SaliencyConfig)
    assert fixed.rows_per_shard(1_281_167) == 7


@pytest.mark.parametrize("levels", [[224], [32, 33], [224, 320, 448, 640]], ids=str)
def test_levels_that_grow_are_accepted(levels):
    config = params(saliency={"levels": levels, "correction": 0}).section(
        "saliency", SaliencyConfig
    )
    assert config.levels == tuple(levels) and config.correction == 0


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"levels": []}, "levels: must be a list of one or more values, each a whole number"),
        ({"levels": [320, 224]}, "got [320, 224]: each number must be larger than the one before"),
        ({"levels": [224, 224]}, "got [224, 224]: each number must be larger than the one before"),
        ({"levels": [0, 224]}, "from 1 to 8,192, got [0, 224]"),
        ({"levels": 224}, "levels: must be a list of one or more values, each a whole number"),
        ({"correction": -1}, "correction: must be a whole number from 0 to 1 billion, got -1"),
        ({"batch": 1.5}, "batch: must be a whole number from 1 to 1 billion, got 1.5"),
        ({"precision": "float16"}, "precision: must be `auto`, `float32` or `bfloat16`, got"),
        ({"shard_rows": 0}, "shard_rows: must be a whole number from 1 to 1 billion or null, got"),
        ({"batch": None}, "batch: must be a whole number from 1 to 1 billion, got null"),
        ({"size": 224}, "size: no such key; allowed: levels, correction, precision"),
    ],
    ids=str,
)
def test_an_error_in_the_section_saliency_names_the_key(entry, message):
    with pytest.raises(UserError) as error:
        params(saliency=entry).section("saliency", SaliencyConfig)
    assert str(error.value).startswith("params.yaml: saliency.")
    assert message in str(error.value)


def test_the_folders_of_what_was_chosen_for_each_run():
    chosen = {"linear": ["b"], "variance": ["a"], "variance_through": ["b", "a"]}
    values = {
        "runs": {"a": {}, "b": {}},
        "transfer": {},
        "detect": {},
        "evaluate": {"chosen": chosen},
    }
    folders = chosen_evaluations(Params(values))
    assert folders == {"a": ["variance", "variance-b", "variance-a"], "b": ["linear"]}
    imported = Params(values | {"runs": {"a": {}}, "imports": {"b": {}}})
    with pytest.raises(UserError, match=r"variance_through: b is imported: its views and its head"):
        chosen_evaluations(imported)
