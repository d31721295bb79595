import pytest

from salmask.detection.architecture import check_trunk
from salmask.detection.datasets import DATASETS, TRAINING_OPTIONS, configured_reader
from salmask.detection.options import training_options
from salmask.detection.protocol import run
from salmask.errors import UserError
from salmask.params.encoder import EncoderConfig
from salmask.params.values import Choice, option_names
from salmask.params.yaml_file import Params


def section(name="demo", **options):
    return {"name": name, "root": "x", "recipe": "voc"} | options


def params(section):
    return Params({"detect": {"x": section}}, "p")


def choice(**options):
    return Choice("demo", {"root": "x", "recipe": "voc"} | options)


def test_data_sets_are_found_by_name():
    assert list(DATASETS) == ["coco", "demo", "voc"]


def test_the_options_of_the_training_are_listed():
    assert set(TRAINING_OPTIONS) == set(option_names(run))


def test_options_of_reading_and_of_training_stand_side_by_side():
    given = section("coco", train="a.json", masks=False, lr=0.1, norm="local")
    reader = configured_reader(params(given), "detect.x")
    assert reader.keywords["train"] == "a.json" and reader.keywords["test_images"] == "val2017"
    options, recipe = training_options(params(given).choice("detect.x"), "p: detect.x")
    assert reader.keywords["masks"] is False and options["masks"] is False
    assert (options["lr"], options["recipe"], options["norm"]) == (0.1, "voc", "local")
    assert (recipe.lr, recipe.iterations) == (0.1, 24_000)
    assert "root" not in options and "lr" not in reader.keywords


def test_the_reader_reads_its_own_options_only():
    values = params(section("coco", masks=False, recipe="none", lr=-1))
    configured_reader(values, "detect.x")
    assert values.reads == {"detect.x.name": "coco", "detect.x.root": "x", "detect.x.masks": False}


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (section("vocs"), "p: detect.x: no `vocs` here; choose from coco, demo, voc"),
        (section(tests=1), r"p: detect.x: tests: no such key, got 1 \(allowed: root, images, side"),
        (section("voc", test_share=0.1), "test_share: no such key"),
        ({"root": "x"}, "p: detect.x: must be a mapping with a `name`"),
        ({"name": "demo"}, "root: Field required"),
        (section("coco", bad="ignore"), "bad: Input should be 'skip' or 'stop'"),
        (section(images={"train": 3, "val": 2}), "images.val"),
    ],
)
def test_invalid_options_of_the_reader_are_refused_with_their_key(given, reason):
    with pytest.raises(UserError, match=reason):
        configured_reader(params(given), "detect.x")


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (Choice("demo", {"root": "x"}), "recipe: Field required"),
        (choice(recipe="fast"), "p: detect.x: recipe: no `fast` here; choose from voc, coco_1x"),
        (choice(iterations=100), r"milestones \[18000, 22000\] must increase and be smaller than"),
        (choice(milestones=[5, 5]), "must increase"),
        (choice(batch=0), "batch: Input should be greater than 0, got 0"),
        (choice(norm="group"), "norm: Input should be 'sync', 'local' or 'frozen'"),
        (choice(flip=2), "flip: Input should be less than or equal to 1"),
        (choice(short_sides=[]), "short_sides: "),
    ],
)
def test_invalid_options_of_the_training_are_refused_with_their_key(given, reason):
    with pytest.raises(UserError, match=reason):
        training_options(given, "p: detect.x")


def test_the_recipe_is_resolved_with_the_scaled_rate():
    _, recipe = training_options(choice(batch=2, scale_lr=True), "p: detect.x")
    assert (recipe.batch, recipe.lr) == (2, 0.0025)


def test_a_detector_needs_a_residual_network():
    for arch in ("resnet10", "resnext50_32x4d", "wide_resnet50_2"):
        check_trunk(EncoderConfig(arch))
    with pytest.raises(UserError, match="mobilenet_v3_small has no layer1 to layer4"):
        check_trunk(EncoderConfig("mobilenet_v3_small"))
