"""A command `python` that starts modules of a project without waiting for imports of packages.

Most of the time of a stage in a tiny project is the import of torch and torchvision. A server
imports them once and forks itself for each `python -m stages.NAME` or `python -m salmask.NAME`.
Everything of the project is imported in the forked process, so its code may change between two
commands. All other commands start the usual interpreter, and so do the jobs of
the tests of Slurm, which run the stages as users run them.
"""

import array
import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import select
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

PACKAGES = ("click", "matplotlib.pyplot", "pycocotools.mask", "pydantic", "timm", "torch._dynamo",
            "torchvision", "yaml", "zarr")  # fmt: skip
TRACE = Path(__file__).with_name("import_trace")
CLIENT = """#!{python} -IS
import array, json, os, socket, sys
if sys.argv[1:2] != ["-m"] or not sys.argv[2].startswith(("stages.", "salmask.")):
    os.execv("{python}", ["{python}", *sys.argv[1:]])
with socket.socket(socket.AF_UNIX) as server:
    server.connect("{address}")
    streams = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))
    server.sendmsg([b"x"], [streams])
    request = dict(module=sys.argv[2], arguments=sys.argv[3:], folder=os.getcwd())
    server.sendall(json.dumps(request | dict(env=dict(os.environ))).encode())
    server.shutdown(socket.SHUT_WR)
    code = int(server.recv(16) or 1)
if code < 0:
    os.kill(os.getpid(), -code)
os._exit(code)
"""


_servers: list[subprocess.Popen[bytes]] = []  # kept, so that their stdin stays open


@functools.cache
def folder() -> Path:
    """The folder of the command, for PATH. The server runs until this process ends, and computes
    with one thread."""
    made = Path(tempfile.mkdtemp(prefix="salmask-preloaded-"))
    address, command = made / "socket", made / "python"
    command.write_text(CLIENT.format(python=sys.executable, address=address))
    command.chmod(0o755)
    server = subprocess.Popen(
        [sys.executable, __file__, str(address)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    _servers.append(server)
    assert server.stdout and server.stdout.readline() == b"ready\n"
    return made


def serve(address: str) -> None:
    """Forks a process for each connection, until stdin is closed. Then removes its folder."""
    for package in PACKAGES:
        importlib.import_module(package)
    gc.collect()
    gc.freeze()  # otherwise collections in forked processes visit, and so copy, all of this
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(64)
        print("ready", flush=True)
        while listener in select.select([listener, sys.stdin], [], [])[0]:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                return handle(connection)
            connection.close()
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
    shutil.rmtree(Path(address).parent)


def handle(connection: socket.socket) -> None:
    """Forks the process of one command, and sends its exit code when it has ended."""
    _, [(_, _, data)], _, _ = connection.recvmsg(1, socket.CMSG_SPACE(3 * 4))
    streams = array.array("i", data)
    request = json.loads(b"".join(iter(lambda: connection.recv(1 << 16), b"")))
    if pid := os.fork():
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        connection.sendall(str(code).encode())
        os._exit(0)
    connection.close()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    run(**request)


def run(module: str, arguments: list[str], folder: str, env: dict[str, Any]) -> None:
    """Runs `python -m MODULE ARGUMENTS` in this process."""
    os.environ.clear()
    os.environ.update(env)
    os.chdir(folder)
    sys.path[0] = folder
    sys.argv[:] = [module, *arguments]
    sys.orig_argv[:] = [sys.executable, "-m", module, *arguments]
    if "SALMASK_IMPORTS" in env:
        runpy.run_path(str(TRACE / "sitecustomize.py"))
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    serve(sys.argv[1])
