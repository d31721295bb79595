"""The temporary folder of processes that pass tensors on through sockets."""

import os
import tempfile

import pytest

from salmask import temporary_folder
from salmask.errors import UserError


def test_a_short_path_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/tmp/short")
    temporary_folder.use_short_temporary_folder()
    assert tempfile.tempdir == "/tmp/short"


def test_a_long_path_is_replaced_in_this_process_only(monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/tmp/" + "x" * 71)
    before = dict(os.environ)
    temporary_folder.use_short_temporary_folder()
    assert tempfile.gettempdir() == "/tmp" and dict(os.environ) == before


def test_without_a_short_folder_it_says_what_to_set(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/tmp/" + "x" * 71)
    monkeypatch.setattr(temporary_folder, "_SHORT", tmp_path / "missing")
    with pytest.raises(UserError, match="set TMPDIR to a folder with a shorter path"):
        temporary_folder.use_short_temporary_folder()
