import doctest
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import salmask
from salmask.encoders import on_disk
from salmask.encoders.on_disk import InputSpec
from salmask.errors import UserError
from tests.helpers.tiny_encoders import SMALL, pictures, saved

ROOT = Path(__file__).parents[1]


def test_the_examples_in_the_documentation():
    results = doctest.testfile(str(ROOT / "docs/api.md"), module_relative=False)
    assert results.attempted > 20 and not results.failed


def test_importing_the_package_imports_nothing_heavy():
    code = (
        "import sys, salmask\n"
        "assert {'load_encoder', 'SaliencyStore', 'MASKS'} <= set(dir(salmask))\n"
        "heavy = {'torch', 'numpy', 'pydantic', 'zarr', 'torchvision', 'safetensors'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_all_public_names_exist():
    assert all(getattr(salmask, name) is not None for name in salmask.__all__)
    with pytest.raises(AttributeError, match="no attribute `nothing`"):
        _ = salmask.nothing


def test_an_encoder_is_loaded_by_its_folder_or_its_weights(tmp_path):
    saved(tmp_path, SMALL, InputSpec(32, 37, None))
    expected = on_disk.load(tmp_path, torch.device("cpu"))(pictures())
    for path in (tmp_path, str(tmp_path), tmp_path / "encoder.safetensors"):
        encoder = salmask.load_encoder(path)
        assert not encoder.training
        assert torch.equal(encoder(pictures()), expected)


def test_missing_files_are_reported(tmp_path):
    with pytest.raises(UserError, match="holds no encoder"):
        salmask.load_encoder(tmp_path)
    saved(tmp_path, SMALL)
    (tmp_path / "encoder.safetensors").unlink()
    with pytest.raises(UserError, match=r"encoder\.safetensors is missing"):
        salmask.load_encoder(tmp_path)
