"""One report, built once for all tests of this folder."""

from pathlib import Path

import pytest

from tests.helpers.tiny_report import make_project, run_stage


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    project = make_project(tmp_path_factory.mktemp("project"))
    with pytest.MonkeyPatch.context() as patch:
        return project, *run_stage(project, patch)
