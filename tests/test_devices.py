"""The choice of the device, errors for missing devices, and deterministic algorithms."""

import os

import pytest
import torch

from salmask import devices
from salmask.errors import UserError


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_the_cpu_is_used_without_a_gpu(monkeypatch):
    monkeypatch.delenv("SALMASK_DEVICE", raising=False)
    assert devices.pick_device() == torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "message"),
    [("gpu", "gpu is not a device"), ("cuda:1", "cuda:1: torch .* finds no GPU")],
)
def test_missing_devices_are_refused(monkeypatch, name, message):
    monkeypatch.setenv("SALMASK_DEVICE", name)
    with pytest.raises(UserError, match=f"SALMASK_DEVICE: {message}"):
        devices.pick_device()


@pytest.mark.parametrize("variable", [None, ":16:8"])
@pytest.mark.parametrize("before", [True, False])
def test_deterministic_algorithms_are_on_inside_the_context_only(monkeypatch, before, variable):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    if variable:
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", variable)
    torch.use_deterministic_algorithms(before)
    try:
        with devices.deterministic(False):
            assert torch.are_deterministic_algorithms_enabled() == before
        with pytest.raises(RuntimeError, match="a stop"), devices.deterministic(True):
            assert torch.are_deterministic_algorithms_enabled()
            assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
            raise RuntimeError("a stop")
        assert torch.are_deterministic_algorithms_enabled() == before
        assert os.environ.get("CUBLAS_WORKSPACE_CONFIG") == variable
    finally:
        torch.use_deterministic_algorithms(False)
