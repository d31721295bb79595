"""Images per second and waiting for data, with a clock of the test's own."""

import csv
import time

from salmask.train.speed import COLUMNS, Speed


def test_waiting_and_rate_by_hand(tmp_path, monkeypatch):
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)

    def batches():
        nonlocal now
        for _ in range(4):
            now += 1.0  # a batch takes a second
            yield 0

    speed, file = Speed(tmp_path / "work" / "speed.csv", images=8), tmp_path / "work" / "speed.csv"
    for number, _ in enumerate(speed.waiting_for(batches())):
        now += 3.0  # a step takes three
        assert speed.text() == "2 images/s, data 25%"
        if number in (1, 3):
            speed.end_epoch(number)
    with file.open() as stream:
        rows = list(csv.DictReader(stream))
    assert [tuple(row.values()) for row in rows] == [(n, "8", "2", "0.25") for n in ("1", "3")]
    assert tuple(rows[0]) == COLUMNS


def test_without_a_number_of_images_no_rate_is_shown(tmp_path):
    assert "images/s" not in Speed(tmp_path / "speed.csv", 0).text()
