"""One process that has imported what loading the embedded base imports, and forks for each program.

Owns the two ends of its socket. Importing torch, diffusers and transformers takes a process five
CPU seconds, and the pages after README start some twenty of them. The programs are the real ones: a
fork has the arguments, folder, environment, standard streams and exit code of the process that
asked for it. The farm's own modules, apart from those that load a base, are imported by each.

Where this process cannot be forked safely (it has threads, or a GPU), it ends, and programs start
as usual. So they do without ``WARM`` in the environment.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from support.docs.program import PROGRAMS

SOCKET = "WARM"
"""Environment variable with the socket's path."""
LOOK_S = 0.05

# -- the process that asks -------------------------------------------------------------------------


def start(name: str) -> None:
    """Run a program: forked from the warm process if there is one, else here."""
    connection = _connect(os.environ.pop(SOCKET, ""))
    if connection is None:
        PROGRAMS[name]()
    else:
        with connection:
            _follow(connection, name)


def _connect(path: str) -> socket.socket | None:
    if not path:
        return None
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(path)
    except OSError:  # it has ended
        connection.close()
        return None
    return connection


def _follow(connection: socket.socket, name: str) -> NoReturn:
    """Wait for the program's end; SIGTERM is passed on."""
    job = {"name": name, "argv": sys.argv, "folder": os.getcwd(), "environment": dict(os.environ)}
    socket.send_fds(connection, [b"."], [0, 1, 2])
    with connection.makefile("rw", encoding="utf-8") as lines:
        lines.write(json.dumps(job) + "\n")
        lines.flush()
        pid = int(lines.readline())
        signal.signal(signal.SIGTERM, lambda number, _: _pass_on(number, pid))
        code = int(lines.readline())
    os._exit(code if code >= 0 else 128 - code)


def _pass_on(number: int, pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


# -- the warm process ------------------------------------------------------------------------------


def serve(path: str) -> None:
    """Import, write a line, then fork for each connection until stdin is closed.

    It returns in forks too, after their program.
    """
    if not _warm_up():
        return
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    print("ready", flush=True)
    gc.collect()
    gc.freeze()
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        with suppress(ChildProcessError):  # keepers that have ended
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if sys.stdin in ready:
            return
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            _keep(connection)()
            return
        connection.close()


def _warm_up() -> bool:
    """Import what loading the base does; whether this process may be forked afterwards."""
    if sys.platform != "linux":
        return False
    from farm.base.loading import load_base

    load_base("embedded", device="meta")  # shapes alone: nothing is computed
    import torch

    return len(os.listdir("/proc/self/task")) == 1 and not torch.cuda.is_available()


def _keep(connection: socket.socket) -> Callable[[], None]:
    """Fork once more; wait for that process and report its end. Returns in that process only."""
    _, streams, _, _ = socket.recv_fds(connection, 1, 3)
    with connection.makefile("rw", encoding="utf-8") as lines:
        job = json.loads(lines.readline())
        pid = os.fork()
        if pid:
            for stream in streams:
                os.close(stream)
            _tell(lines, pid)
            code = _wait(connection, pid)
            _tell(lines, code)
            os._exit(0)
    connection.close()
    _become(job, streams)
    return PROGRAMS[job["name"]]


def _tell(lines: Any, number: int) -> None:
    with suppress(OSError):  # who asked has been killed
        lines.write(f"{number}\n")
        lines.flush()


def _wait(connection: socket.socket, pid: int) -> int:
    """The process's exit code; it is killed if the one that asked for it is."""
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if select.select([connection], [], [], LOOK_S)[0]:  # it says nothing more: this is its end
            os.kill(pid, signal.SIGKILL)
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _become(job: dict[str, Any], streams: list[int]) -> None:
    """Take the arguments, folder, environment and standard streams of the process that asked."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(job["folder"])
    os.environ.clear()
    os.environ.update(job["environment"])
    sys.argv = job["argv"]
    sys.path[0] = str(Path(sys.argv[0]).parent) if job["name"] == "farm" else ""
