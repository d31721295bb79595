import pytest

from salmask.detection.architecture import check_trunk
from salmask.detection.datasets import DATASETS, configured_reader
from salmask.detection.protocol import training_options
from salmask.errors import UserError
from salmask.params.encoder import EncoderConfig
from salmask.params.values import Choice


def test_data_sets_are_found_by_name():
    assert list(DATASETS) == ["coco", "demo", "voc"]


def test_a_reader_has_the_options_of_its_section():
    choice = Choice("coco", {"root": "x", "train": "a.json", "masks": False})
    reader = configured_reader(choice, "p: detect.x.data")
    assert reader.keywords["train"] == "a.json" and reader.keywords["test_images"] == "val2017"
    assert reader.keywords["masks"] is False


def test_options_of_the_training_override_its_recipe():
    options, recipe = training_options({"recipe": "voc", "lr": 0.1, "norm": "local"}, "detect.x")
    assert (options["lr"], options["recipe"], options["norm"]) == (0.1, "voc", "local")
    assert (recipe.lr, recipe.iterations) == (0.1, 24_000)


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("vocs", {}, "p: detect.x.data.name: no `vocs` here; choose from coco, demo, voc"),
        ("demo", {"tests": 1}, "data.tests: no such key; allowed: root, images, side"),
        ("voc", {"recipe": "voc"}, "recipe: no such key"),
        ("demo", {"root": None}, "root: must be a text, got null"),
        ("coco", {"bad": "ignore"}, "bad: must be `skip` or `stop`, got"),
        ("demo", {"images": {"train": 3, "val": 2}}, "images.val"),
    ],
)
def test_invalid_options_of_the_reader_are_refused_with_their_key(name, options, reason):
    with pytest.raises(UserError, match=reason):
        configured_reader(Choice(name, {"root": "x"} | options), "p: detect.x.data")


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"recipe": "fast"}, "p: detect.x.recipe: no `fast` here; choose from voc, coco_1x"),
        ({"iterations": 100}, r"milestones: \[18000, 22000\] must increase and be smaller than"),
        ({"milestones": [5, 5]}, "each number must be larger than the one before"),
        ({"batch": 0}, "batch: must be a whole number from 1 to 1 billion or null, got 0"),
        ({"norm": "group"}, "norm: must be `sync`, `local` or `frozen`"),
        ({"flip": 2}, "flip: must be a number from 0 to 1"),
        ({"short_sides": []}, "short_sides: "),
        ({"root": "x"}, "p: detect.x.root: no such key"),
    ],
)
def test_invalid_options_of_the_training_are_refused_with_their_key(given, reason):
    with pytest.raises(UserError, match=reason):
        training_options({"recipe": "voc"} | given, "p: detect.x")


def test_the_training_needs_a_recipe():
    with pytest.raises(UserError, match="recipe: is missing"):
        training_options({}, "p: detect.x")


def test_the_recipe_is_resolved_with_the_scaled_rate():
    _, recipe = training_options({"recipe": "voc", "batch": 2, "scale_lr": True}, "p: detect.x")
    assert (recipe.batch, recipe.lr) == (2, 0.0025)


def test_a_detector_needs_a_residual_network():
    for arch in ("resnet10", "resnext50_32x4d", "wide_resnet50_2"):
        check_trunk(EncoderConfig(arch))
    with pytest.raises(UserError, match="mobilenet_v3_small has no layer1 to layer4"):
        check_trunk(EncoderConfig("mobilenet_v3_small"))
