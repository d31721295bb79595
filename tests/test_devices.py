"""The choice of the device, and errors for missing devices."""

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
