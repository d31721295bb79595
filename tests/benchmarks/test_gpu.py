"""The benchmark for GPUs: it runs on a CPU too, and counts what a GPU's profile contains."""

import json
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from torch.autograd import DeviceType

from benchmarks import gpu


def event(name: str, start: float, end: float, device: DeviceType) -> SimpleNamespace:
    times = SimpleNamespace(start=start, end=end)
    return SimpleNamespace(name=name, time_range=times, device_type=device)


def test_kernels_copies_and_waits_of_the_measured_steps_are_counted():
    cpu, cuda = DeviceType.CPU, DeviceType.CUDA
    events = [
        event("measured steps", 100, 900, cpu),
        event("measured steps", 110, 905, cuda),  # the region, as the device shows it
        event("aten::conv2d", 110, 300, cpu),
        event("aten::convolution", 120, 300, cpu),
        event("cudaLaunchKernel", 130, 140, cpu),
        event("cudaStreamSynchronize", 850, 890, cpu),
        event("cudaDeviceSynchronize", 910, 920, cpu),  # of the profiler
        event("sgemm", 150, 650, cuda),
        event("elementwise", 650, 850, cuda),
        event("Memcpy DtoH (Device -> Pinned)", 860, 870, cuda),
    ]
    assert gpu.count_events(events) == {
        "operators": 2,
        "kernels": 2,
        "copies": 1,
        "host waits": 1,
        "kernel ms": 0.7,
    }


def test_the_command_runs_without_a_gpu(tmp_path):
    file = tmp_path / "gpu.json"
    options = ["--device", "cpu", "--small", "--workers", "0", "--json", str(file)]
    result = CliRunner().invoke(gpu.main, options, catch_exceptions=False)
    assert result.exit_code == 0
    figures = json.loads(file.read_text())["figures"]
    step, loader, saliency, knn = figures.values()
    assert list(figures) == ["step, resnet10, 16 px, batch 4", "loader", "saliency", "k-NN"]
    assert step["high_pass: operators"] > step["none: operators"] > 500
    assert step["none: kernels"] == step["none: host waits"] == 0
    assert step["high_pass / bare passes"] > 0
    rates = [value for part in (loader, saliency, knn) for value in part.values()]
    assert len(loader) == 6 and all(rate > 0 for rate in rates)


@pytest.mark.parametrize(
    ("options", "message"), [([], "there is no GPU"), (["--device", "cpu"], "add --small")]
)
def test_it_says_how_to_run_it_without_a_gpu(options, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = CliRunner().invoke(gpu.main, options)
    assert message in result.output and result.exit_code == 2
