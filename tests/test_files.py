"""Files: links where there are none."""

import errno
import os
import shutil

import pytest

from salmask.files import link_or_copy


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.EXDEV, errno.EMLINK])
def test_without_hard_links_files_are_copied(tmp_path, monkeypatch, number):
    def refuse(source: str, destination: str) -> None:
        raise OSError(number, os.strerror(number), source, None, destination)

    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/c").write_bytes(b"content")
    shutil.copytree(tmp_path / "a", tmp_path / "linked", copy_function=link_or_copy)
    assert (tmp_path / "linked/b/c").samefile(tmp_path / "a/b/c")
    monkeypatch.setattr(os, "link", refuse)
    shutil.copytree(tmp_path / "a", tmp_path / "copied", copy_function=link_or_copy)
    assert [path.name for path in (tmp_path / "copied/b").iterdir()] == ["c"]
    assert (tmp_path / "copied/b/c").read_bytes() == b"content"
    assert not (tmp_path / "copied/b/c").samefile(tmp_path / "a/b/c")


def test_other_errors_of_links_are_raised(tmp_path):
    with pytest.raises(FileNotFoundError):
        link_or_copy(str(tmp_path / "none"), str(tmp_path / "new"))
