"""The options of data sets, and names of data sets."""

import subprocess
import sys

import pytest

from salmask.datasets import DATASETS
from salmask.datasets.reader import dataset_reader
from salmask.errors import UserError
from salmask.params.values import Choice
from tests.helpers.trees import make_images


def test_a_missing_folder_is_an_error(tmp_path):
    choice = Choice("imagefolder", {"root": str(tmp_path / "absent")})
    with pytest.raises(
        UserError, match=r"^transfer\.x\.root: .*absent is neither a folder nor a file "
    ):
        dataset_reader(choice, "transfer.x")[1](tmp_path, 0)


def test_options_are_those_of_the_data_set_and_the_common_ones(tmp_path):
    make_images(tmp_path, "cat/1.png", "dog/2.png")
    options = {"root": str(tmp_path), "val_share": 1.0, "max_rejected": 0.2, "min_side": 16}
    policy, read = dataset_reader(Choice("imagefolder", options), "params.yaml: data")
    assert (policy.max_rejected, policy.min_side) == (0.2, 16)
    assert {file.split for file in read(tmp_path, 0).files} == {"val"}
    policy, _ = dataset_reader(Choice("imagefolder", {"root": "."}), "params.yaml: data")
    assert (policy.max_rejected, policy.min_side) == (0.05, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_rejected": 1.5}, r"params.yaml: data.max_rejected: .*got 1.5"),
        ({"max_rejected": -0.1}, r"max_rejected: .*got -0.1"),
        ({"min_side": 0}, r"min_side: .*got 0"),
        ({"min_side": "large"}, r'min_side: .*got "large"'),
        ({"min_sid": 9}, r"data.min_sid: no such key \(did you mean `min_side`\?\)"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(UserError, match=message):
        dataset_reader(Choice("imagefolder", {"root": "."} | options), "params.yaml: data")


def test_an_unknown_name_is_an_error():
    with pytest.raises(
        UserError, match=r"data\.name: no `mnist` here; choose from caltech101, cifar10, "
    ):
        dataset_reader(Choice("mnist", {"root": "."}), "data")


def test_names_are_those_of_the_modules_that_define_a_data_set():
    assert list(DATASETS) == [
        "caltech101", "cifar10", "cifar100", "coco", "demo", "flowers102", "imagefolder",
        "imagenet", "imagenet100", "imagenette", "inat2018", "places205", "splits", "stl10",
        "tinyimagenet", "voc",
    ]  # fmt: skip


def test_data_sets_are_imported_without_torch():
    code = (
        "import sys; from salmask.datasets import DATASETS, download, reader; "
        "list(DATASETS.values()); print({'torch', 'torchvision'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert output == "set()\n"


def test_a_listed_path_that_leads_out_is_refused(tmp_path):
    """Whatever data set lists it."""
    make_images(tmp_path, "secret.jpg", "root/images256/a/1.jpg")
    lists = tmp_path / "root" / "trainvalsplit_places205"
    lists.mkdir()
    (lists / "train_places205.csv").write_text("a/1.jpg 0\n")
    (lists / "val_places205.csv").write_text("../../secret.jpg 0\n")
    choice = Choice("places205", {"root": str(tmp_path / "root")})
    with pytest.raises(UserError, match=r"data: images256/\.\./\.\./secret\.jpg leads out of"):
        dataset_reader(choice, "data")[1](tmp_path, 0)
