"""The suites of the repository: validity, completeness, and agreement with the papers."""

import re
from typing import Any

import pytest

from salmask.commands import suites
from salmask.commands.check import validate
from salmask.detection.protocol import training_options
from salmask.evaluate import linear
from salmask.params.names import run_names
from salmask.params.run import RunConfig, read_run
from salmask.params.yaml_file import Params
from salmask.report import comparison
from salmask.report.text import DASH
from tests.helpers.project import ROOT

NAMES = suites.names(ROOT)


def loaded(name: str) -> Params:
    return suites.load(ROOT, name)


def runs(name: str) -> dict[str, RunConfig]:
    params = loaded(name)
    return {run: read_run(params, run) for run in run_names(params)}


@pytest.mark.parametrize("name", NAMES)
def test_every_suite_is_sound(name: str) -> None:
    validate(loaded(name))


def test_the_papers_tables_all_have_a_suite() -> None:
    named = {table for name in NAMES for table in loaded(name).raw("tables")}
    assert {f"chin {n}" for n in (*range(1, 9), "repository")} <= named
    settings = ("mixmask-preprint 8",)  # no results
    assert {f"mixmask-preprint {n}" for n in range(1, 11)} - {*settings} <= named
    # Table 2 of the BMVC version has the runs of preprint Table 5
    assert {f"mixmask {n}" for n in (1, 3, 4, 5)} <= named
    assert {f"mscn {n}" for n in ("section 5.1", 1, 2, 3, 4, 5)} <= named


@pytest.mark.parametrize(
    ("name", "table"),
    [("mscn-table1-4", f"mscn {n}") for n in (1, 3, 4)]
    + [("mixmask-bmvc", f"mixmask {n}") for n in (3, 4, 5)],
)
def test_cells_that_no_text_gives_are_dashes_beside_our_numbers(name: str, table: str) -> None:
    params = loaded(name)
    config = comparison.read_tables(params)[table]
    metrics = dict.fromkeys(config.columns.values(), 12.34)
    rows = [{"run": run, "metrics": metrics} for run in run_names(params)]
    (compared,) = comparison.compare({table: config}, {}, {"rows": rows})
    pairs = [pair for pairs in compared.rows.values() for pair in pairs]
    assert pairs and all(pair.paper is None and pair.difference is None for pair in pairs)
    lines = comparison.text(compared).splitlines()[4:]
    assert all(re.search(rf"{DASH}\s+12\.34\s+{DASH}", line) for line in lines)


@pytest.mark.parametrize("name", [n for n in NAMES if n.endswith("-small")])
def test_a_small_version_has_the_runs_of_its_table(name: str) -> None:
    if name == "imagenette-small":  # not for a table of a paper
        return
    small, large = (loaded(n).raw("runs") for n in (name, name.removesuffix("-small")))
    assert list(small) == list(large)


# ------------------------------------------------------------------------------------- recipes


def test_chins_batch_norm_groups_are_those_of_four_gpus() -> None:
    for run in runs("chin-table1").values():
        assert run.framework.options["bn_group"] == run.train.batch / 4
    simclr = runs("chin-table1")["simclr"]
    assert (simclr.train.batch, simclr.framework.options["bn_group"]) == (256, 64)


@pytest.mark.parametrize("name", NAMES)
def test_features_of_other_frameworks_than_moco_have_three_rates_in_linear(name: str) -> None:
    params = loaded(name)
    options = params.raw("evaluate").get("linear", {})
    chosen = params.raw("evaluate")["chosen"]["linear"]
    frameworks = {read_run(params, run).framework.name for run in chosen}
    rates = linear.settings(options["preset"], lr=options.get("lr"))["lr"] if options else None
    if options.get("preset") == "moco" and frameworks - {"moco"}:
        assert rates == [30, 3, 0.3]
    if options.get("preset") == "mscn":
        assert rates == 1.0  # Jing et al. 2022, App. A.2


SIDES = {"cifar100": 32, "cifar10": 32, "tinyimagenet": 64}  # px of the images


@pytest.mark.parametrize("name", NAMES)
def test_images_of_the_size_of_the_view_are_scored_whole(name: str) -> None:
    side = SIDES.get(loaded(name).choice("data").name)
    for run in runs(name).values():
        assert run.view.shorter == (side if run.view.size == side else None)


def test_a_suite_has_adios_with_its_own_rate() -> None:
    own, chins = runs("chin-table1-adios"), runs("chin-table1")
    assert {run.train.lr for run in own.values()} == {0.19}
    assert [chins[name].train.lr for name in own] == [0.015, 0.3]
    assert {run.mask.name for run in own.values()} == {"adios"}
    simclr = own["simclr-adios"]
    assert (simclr.train.optimizer, simclr.train.batch) == ("sgd", 128)
    assert simclr.framework.options["temperature"] == 0.2


def test_the_bmvc_versions_knn_rows_are_means_of_three_seeds() -> None:
    for name in ("mixmask-ablation", "mixmask-ablation-tinyimagenet"):
        params = loaded(name)
        settings = {k: v for s in params.raw("sweeps").values() for k, v in s["settings"].items()}
        for row, setting in params.raw("tables")["mixmask 1"]["rows"].items():
            seeds = [params.raw("runs")[run]["seed"] for run in settings[setting]]
            assert seeds == [0, 1, 2], row
        assert set(params.raw("tables")["mixmask 1"]["columns"].values()) == {"knn200_top1"}


def test_the_variances_of_table_7_are_not_compared() -> None:
    assert loaded("chin-table7").raw("tables")["chin 7"]["comparable"] is False


def test_the_grid_of_48_is_a_run() -> None:
    params = loaded("mixmask-ablation-imagenet")
    for table in ("mixmask 1", "mixmask-preprint 1"):
        run = read_run(params, params.raw("tables")[table]["rows"]["grid 48×48"])
        assert (run.view.size, run.view.grid, run.mask.name) == (224, 48, "mixmask")


def training(params: Params, name: str) -> tuple[dict[str, Any], Any]:
    return training_options(params.raw("detect")[name]["training"], name)


def test_table_2_is_there_with_a_trained_and_with_a_fixed_encoder() -> None:
    trained, frozen = loaded("chin-table2-3"), loaded("chin-table2-frozen")
    for name in ("voc", "coco"):
        (options, recipe), (others, same) = training(trained, name), training(frozen, name)
        assert (options["freeze_encoder"], others["freeze_encoder"]) == (False, True)
        assert options | {"freeze_encoder": True} == others and recipe == same
    tables = [params.raw("tables")["chin 2"] for params in (trained, frozen)]
    assert tables[0]["rows"] == tables[1]["rows"] and tables[0]["columns"] == tables[1]["columns"]
    assert runs("chin-table2-3") == runs("chin-table2-frozen")


def test_mscns_tables_have_its_appendix() -> None:
    """Jing et al. 2022, Sec. 6 and App. A."""
    params, own = loaded("mscn-table1-4"), runs("mscn-table1-4")
    for name, epochs, lr in (("simclr", 800, 4.8), ("byol", 1000, 3.2)):
        for run in (own[name], own[f"{name}-mscn"]):
            assert (run.framework.name, run.train.epochs, run.train.lr) == (name, epochs, lr)
            assert (run.train.batch, run.train.warmup_epochs, run.train.optimizer) == (
                4096, 10, "lars",
            )  # fmt: skip
        assert (own[name].mask.name, own[f"{name}-mscn"].mask.name) == ("none", "mscn")
    assert training(params, "voc")[1].lr == 0.085 and training(params, "voc")[1].warmup == 1000
    assert training(params, "coco")[1].lr == 0.05
    assert params.raw("evaluate")["finetune"] == {"preset": "mscn"}
    sgd = params.raw("evaluate")["transfer"]["sgd"]
    assert (sgd["inat2018"]["epochs"], sgd["places205"]["epochs"]) == (84, 14)


def test_the_bmvc_versions_detection_has_the_1x_schedule_and_the_preprints_2x() -> None:
    iterations = {n: training(loaded(n), "coco")[1].iterations
                  for n in ("mixmask-bmvc", "mixmask-detection")}  # fmt: skip
    assert iterations == {"mixmask-bmvc": 90_000, "mixmask-detection": 180_000}
    finetune = loaded("mixmask-bmvc").raw("evaluate")["finetune"]
    assert (finetune["lr"], finetune["head_lr"]) == (0.002, 0.5)  # Jing et al. 2022, App. A.3


SHARED = {  # runs that are trained once, because their parameters are equal
    "mscn-preprocess": ["mscn-table1-4"],
    "chin-table1": ["chin-table2-3", "chin-table2-frozen", "chin-repository", "chin-table5"],
    "mixmask-detection": [
        *("mixmask-finetune", "mixmask-frameworks-imagenet", "mixmask-bmvc", "mixmask-erase"),
    ],
}


@pytest.mark.parametrize(("first", "other"), [(a, b) for a, many in SHARED.items() for b in many])
def test_runs_that_suites_share_have_the_same_parameters(first: str, other: str) -> None:
    mine, theirs = runs(first), runs(other)
    common = mine.keys() & theirs.keys()
    assert common and all(mine[name] == theirs[name] for name in common)
    for key in ("seed", "data", "localizer", "saliency"):
        assert loaded(first).raw(key) == loaded(other).raw(key)
