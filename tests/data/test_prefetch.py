"""Batches on their way to the device."""

import contextlib
from dataclasses import dataclass

import torch

from salmask.data.prefetch import map_tensors, on_device


@dataclass(frozen=True)
class Part:
    number: int
    values: dict[str, torch.Tensor]


def test_tensors_are_mapped_in_every_container():
    one = torch.ones(2)
    batch = [(one, {"a": one}), Part(3, {"b": one}), 5, "text", None]
    (first, second), part, *others = map_tensors(lambda tensor: tensor + 1, batch)
    for tensor in (first, second["a"], part.values["b"]):
        assert tensor.tolist() == [2, 2]
    assert part.number == 3 and others == [5, "text", None] and one.tolist() == [1, 1]


def test_batches_keep_their_order_and_values():
    batches = [[torch.full((2,), n)] for n in range(3)]
    copies = list(on_device(batches, torch.device("cpu")))
    assert [batch[0].tolist() for batch in copies] == [[0, 0], [1, 1], [2, 2]]


def test_the_next_batch_is_copied_on_a_stream_of_its_own_before_a_batch_is_used(monkeypatch):
    """The calls that a GPU would get."""
    calls: list[str] = []

    class Traced(torch.Tensor):
        def to(self, device, non_blocking):
            assert device.type == "cuda" and non_blocking
            calls.append(f"copy {int(self)} {used[-1]}")
            return self

        def record_stream(self, stream):
            calls.append(f"record {int(self)} {stream.name}")

    class Stream:
        def __init__(self, device, name="copies"):
            self.name = name

        def wait_stream(self, other):
            calls.append(f"{self.name} waits for {other.name}")

    used = ["main"]

    @contextlib.contextmanager
    def stream_context(stream):
        used.append(stream.name)
        yield
        used.pop()

    main = Stream(None, "main")
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", stream_context)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: main)
    batches = [[torch.tensor(n).as_subclass(Traced)] for n in range(2)]
    for (tensor,) in on_device(batches, torch.device("cuda")):
        calls.append(f"use {int(tensor)}")
    expected = ["copy 0 copies"]
    expected += ["main waits for copies", "record 0 main", "copy 1 copies", "use 0"]
    expected += ["main waits for copies", "record 1 main", "use 1"]
    assert calls == expected
