"""Runs farm commands in few processes: each new one imports torch and diffusers again."""

from __future__ import annotations

import faulthandler
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

import farm.cli

__all__ = ["Done", "farm_here", "farm_in_one_process"]

Done = subprocess.CompletedProcess[str]

IN_TURN = """
import json, os, sys
from farm.cli import main

folder = sys.argv[1]
for number, words in enumerate(json.load(sys.stdin)):
    for descriptor in (1, 2):
        file = os.open(f"{folder}/{number}-{descriptor}", os.O_WRONLY | os.O_CREAT)
        os.dup2(file, descriptor)
        os.close(file)
    sys.argv[1:] = words
    code = 0
    try:
        main()
    except SystemExit as end:
        code = end.code or 0
    sys.stdout.flush()
    sys.stderr.flush()
    with open(f"{folder}/{number}-code", "w") as file:
        file.write(str(code))
"""


def farm_here(*words: str | Path, **environment: str) -> Done:
    """A command in this process, with its exit code and what it prints on both streams."""
    arguments = ["farm", *map(str, words)]
    stdout, stderr = io.StringIO(), io.StringIO()
    code: object = 0
    with ExitStack() as stack:
        stack.enter_context(mock.patch.dict(os.environ, environment))
        stack.enter_context(mock.patch.object(sys, "argv", arguments))
        # lasting changes of the process, and its end
        stack.enter_context(mock.patch.object(faulthandler, "enable"))
        stack.enter_context(mock.patch.object(farm.cli, "hush_libraries"))
        stack.enter_context(mock.patch.object(farm.cli, "keep_imports"))
        stack.enter_context(mock.patch.object(farm.cli, "_leave", sys.exit))
        stack.enter_context(redirect_stdout(stdout))
        stack.enter_context(redirect_stderr(stderr))
        try:
            farm.cli.main()
        except SystemExit as end:
            code = end.code or 0
    assert isinstance(code, int)
    return Done(arguments, code, stdout.getvalue(), stderr.getvalue())


def farm_in_one_process(
    commands: Sequence[Sequence[str | Path]], environment: Mapping[str, str]
) -> list[Done]:
    """Commands one after another in a new process, with what is written to its descriptors."""
    words = [[str(word) for word in command] for command in commands]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", IN_TURN, folder],
            input=json.dumps(words),
            capture_output=True,
            text=True,
            env=dict(environment),
            timeout=500,
        )
        found = [_read(Path(folder), number, command) for number, command in enumerate(words)]
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return found


def _read(folder: Path, number: int, command: list[str]) -> Done:
    stdout, stderr = ((folder / f"{number}-{one}").read_text() for one in (1, 2))
    code = folder / f"{number}-code"
    assert code.exists(), f"{command} ended the process\n{stdout}{stderr}"
    return Done(command, int(code.read_text()), stdout, stderr)
