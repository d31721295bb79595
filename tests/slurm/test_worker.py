"""Where the first task of a job listens for the others."""

import socket
from types import SimpleNamespace

import pytest

from salmask.errors import UserError
from slurm import worker


@pytest.fixture
def job(monkeypatch):
    """The environment of the first task of a job on this machine."""
    environment = SimpleNamespace(
        global_rank=0, cluster="local", job_id="12345", hostnames=["localhost"]
    )
    monkeypatch.setattr(worker, "JobEnvironment", lambda: environment)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.delenv("MASTER_PORT", raising=False)
    return environment


def test_the_port_is_a_function_of_the_job_unless_it_is_set(job, monkeypatch):
    assert worker._first_task_address() == "localhost:22345"
    monkeypatch.setenv("MASTER_PORT", "19999")
    assert worker._first_task_address() == "localhost:19999"


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_port_of_another_program_is_named(job, monkeypatch, family):
    dual = family == socket.AF_INET6
    with socket.create_server(("", 0), family=family, dualstack_ipv6=dual) as server:
        port = server.getsockname()[1]
        monkeypatch.setenv("MASTER_PORT", str(port))
        with pytest.raises(UserError, match=f"another program uses port {port} of"):
            worker._first_task_address()
        job.global_rank = 1  # only the first task listens
        assert worker._first_task_address() == f"localhost:{port}"
