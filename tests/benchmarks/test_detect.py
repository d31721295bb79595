"""The benchmark of detection: the time of the network and that of the other parts of a step."""

import time
from itertools import count

import torch

from benchmarks import detect


def test_every_part_of_a_step_is_timed():
    start = time.process_time()
    seconds = detect.measure("resnet18", side=64, batch=1, regions=8, rounds=1)
    assert min(seconds.values()) > 0 and len(seconds) == 5
    assert sum(seconds.values()) < time.process_time() - start


def test_the_time_of_the_network_is_that_of_its_modules(monkeypatch):
    inner, outer = torch.nn.Identity(), torch.nn.Identity()
    network = detect.NetworkTime([inner])
    ticks = count()
    monkeypatch.setattr(detect.time, "process_time", lambda: next(ticks))
    for _ in range(3):
        outer(inner(torch.zeros(1)))
        next(ticks)
    assert network.seconds == 3
