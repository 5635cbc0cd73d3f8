"""Runs the documentation's blocks in a clone with a virtual environment and photos.

Owns how a block runs: a shell for each line, keeping the effects of `cd`, `export` and `.`, as when
a reader types them one after another; a server that keeps running while later blocks use it; one
Python process for all Python blocks of a page. Options of a block are never changed. Where the
defaults would take minutes, ``program`` sets smaller ones, which a block's own options override.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import venv
from pathlib import Path

from support.cli.terminal import environment
from support.docs.pages import ROOT, Block, command_lines
from support.docs.program import SMALL
from support.docs.warm_process import WarmProcess
from support.s3 import free_port

CLONED = ("Makefile", "pyproject.toml", "constraints.txt", "cluster.yaml", "jobs")
TESTS = ("conftest.py", "test_errors.py")
"""The command that `make test` runs in the clone: the whole suite would include this test."""
PHOTOS = {
    "photos/my_cat": "cat",
    "photos/rex": "dog",
    "photos/tom": "cat",
    "photos/vase": "teapot",
    "jobs/photos/cat": "cat",
    "jobs/photos/mushroom": "mushroom",
}
"""Folders of photos that the pages mention, and their subjects."""
ADDRESS = "127.0.0.1:8000"
"""The port of the pages' endpoints; here each page uses its own free port."""
LINE_DEADLINE_S = 1500.0
START_DEADLINE_S = 600.0
REMEMBERED = re.compile(r"(cd|export|\.|source)\s")
"""Lines whose effects later lines need."""
SERVER = re.compile(r"(?:\w+=\S+\s+)*(?:\S*/)?farm serve\b")
PLACEHOLDER = re.compile(r"[A-Za-z0-9]*…")
"""Variable parts of a console's output. Later commands may repeat them."""
ELAPSED = re.compile(r"^ *[\d.]+ s  ")
"""Seconds at the start of a console line, as measured on the author's machine."""
PROGRAM = """import sys
sys.path.append({tests!r})
from support.docs.warm import start, serve
sys.path.remove({tests!r})
{call}
"""


class BlockFailed(AssertionError):
    """A block that does not behave as its page describes."""


class Clone:
    """The folder in which all pages' blocks run, one after another."""

    def __init__(self, folder: Path, ray_folder: Path) -> None:
        self.folder = folder
        self.ray_folder = ray_folder
        folder.mkdir(parents=True)
        for name in CLONED:
            source = ROOT / name
            copy = shutil.copytree if source.is_dir() else shutil.copy
            copy(source, folder / name)
        (folder / "tests").mkdir()
        for name in TESTS:
            shutil.copy(ROOT / "tests" / name, folder / "tests" / name)
        self._warm: WarmProcess | None = None
        self._install()
        self._photograph()

    def warm(self) -> str:
        """The socket of the process that programs are forked from; it is started at first use."""
        path = str(self.ray_folder / "warm")
        if self._warm is None:
            command = [self.folder / ".venv/bin/python", "-c", _program(f"serve({path!r})")]
            self._warm = WarmProcess(command, readers_environment(), self.folder)
        return path

    def close(self) -> None:
        """End the process that programs are forked from."""
        if self._warm is not None:
            self._warm.close()
            self._warm = None

    def _install(self) -> None:
        """The result of `make install`; here it uses the packages of the testing interpreter."""
        venv.create(self.folder / ".venv", symlinks=True)
        binaries = self.folder / ".venv/bin"
        packages = next((self.folder / ".venv/lib").glob("python*/site-packages"))
        installed = sysconfig.get_path("purelib")
        (packages / "installed.pth").write_text(f"import site; site.addsitedir({installed!r})\n")
        farm = binaries / "farm"
        farm.write_text(f"#!{binaries / 'python'}\n" + _program("start('farm')"))
        farm.chmod(0o755)
        for tool in ("ray", "serve"):
            (binaries / tool).symlink_to(Path(sys.executable).parent / tool)
        (self.folder / ".venv/.installed").touch()

    def _photograph(self) -> None:
        from farm.base.embedded.world import render_subject

        for number, (name, noun) in enumerate(PHOTOS.items()):
            (self.folder / name).mkdir(parents=True)
            for index, photo in enumerate(render_subject(500 + number, 4, class_noun=noun)):
                photo.picture.save(self.folder / name / f"{index}.png")
        shutil.make_archive(str(self.folder / "photos/vase"), "zip", self.folder / "photos/vase")
        shutil.rmtree(self.folder / "photos/vase")


class PageRun:
    """One page's blocks, run in order.

    Each program is a process of its own. With ``warm``, it is forked from one that has imported
    the libraries which it needs.
    """

    def __init__(self, clone: Clone, *, prelude: tuple[str, ...] = (), warm: bool = False) -> None:
        self.clone = clone
        self.port = free_port()
        self.output = self.errors = ""
        """All output, and what of it was written on stderr."""
        self._changes = list(prelude)
        self._is_warm = warm
        self._servers: list[tuple[subprocess.Popen[bytes], Path]] = []
        self._python: subprocess.Popen[str] | None = None
        self._found: dict[str, str] = {}

    def run(self, block: Block) -> None:
        """Run one block.

        Raises:
            BlockFailed: with the output.
        """
        if block.kind == "sh":
            for line in command_lines(block.text):
                self.run_line(line, block.place)
        elif block.kind == "console":
            self._run_console(block)
        elif block.kind == "python":
            self._run_python(block)
        else:
            target = self.clone.folder / block.title
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(block.text, encoding="utf-8")

    def run_line(self, line: str, place: str = "") -> str:
        """Run one line of a shell and return what it printed on stdout.

        Raises:
            BlockFailed: if it fails or times out.
        """
        if SERVER.match(line):
            return self._serve(line, place)
        done = subprocess.run(
            self._shell(line),
            cwd=self.clone.folder,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LINE_DEADLINE_S,
            check=False,
        )
        self.output += done.stdout + done.stderr
        self.errors += done.stderr
        if done.returncode:
            raise BlockFailed(f"{place}: {line}\n{done.stdout}{done.stderr}")
        if REMEMBERED.match(line):
            self._changes.append(line)
        return done.stdout

    def close(self) -> None:
        """End running processes."""
        for process, _ in self._servers:
            process.send_signal(signal.SIGTERM)
        for process, _ in self._servers:
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
        self._servers.clear()
        if self._python is not None:
            self._python.communicate(timeout=60)
            self._python = None

    # -- how each kind runs ----------------------------------------------------------------------

    def _serve(self, line: str, place: str) -> str:
        log = self.clone.folder / f"serve-{self.port}-{len(self._servers)}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                self._shell(f"exec {line}"),
                cwd=self.clone.folder,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        self._servers.append((process, log))
        until_s = time.monotonic() + START_DEADLINE_S
        while f"http://127.0.0.1:{self.port}" not in (printed := log.read_text()):
            if process.poll() is not None or time.monotonic() > until_s:
                raise BlockFailed(f"{place}: {line}\n{printed}")
            time.sleep(0.2)
        self.output += printed
        self.errors += printed
        return printed

    def _run_console(self, block: Block) -> None:
        printed, expected, command = "", [], ""
        for line in [*block.text.splitlines(), "$ "]:
            if not line.startswith("$ "):
                expected.append(line.split("   #")[0].rstrip())
                continue
            self._compare(printed, expected, f"{block.place}: {command}")
            command, expected = line.removeprefix("$ ").strip(), []
            for known, value in self._found.items():
                command = command.replace(known, value)
            printed = self.run_line(command, block.place) if command else ""

    def _compare(self, printed: str, expected: list[str], place: str) -> None:
        """Check that each expected line is in the output; records the text matched by `…`."""
        for line in expected:
            shown = ELAPSED.sub("", self._here(line))
            names = PLACEHOLDER.findall(shown)
            parts = map(re.escape, PLACEHOLDER.split(shown))
            found = re.search(r"(\S+?)".join(parts) + r"\s*$", printed, re.MULTILINE)
            if found is None:
                raise BlockFailed(f"{place}\nprinted:\n{printed}\nbut the page says:\n{line}")
            self._found.update(zip(names, found.groups(), strict=True))
            self._found.pop("…", None)

    def _run_python(self, block: Block) -> None:
        if self._python is None:
            self._python = subprocess.Popen(
                [self.clone.folder / ".venv/bin/python", "-c", _program("start('blocks')")],
                cwd=self.clone.folder,
                env=self._environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        assert self._python.stdin is not None
        assert self._python.stdout is not None
        self._python.stdin.write(json.dumps(self._here(block.text)) + "\n")
        self._python.stdin.flush()
        answer = self._python.stdout.readline()
        fault = json.loads(answer) if answer else "Python ended"
        if fault:
            raise BlockFailed(f"{block.place}:\n{block.text}\n{fault}")

    def _here(self, text: str) -> str:
        return text.replace(ADDRESS, f"127.0.0.1:{self.port}")

    def _shell(self, line: str) -> list[str]:
        return ["bash", "-c", "\n".join(["set -eo pipefail", *self._changes, self._here(line)])]

    def _environment(self) -> dict[str, str]:
        """The reader's environment, with the small defaults."""
        return {
            **readers_environment(),
            "RAY_TMPDIR": str(self.clone.ray_folder),
            # also for pages that fixtures run, before a test has a cache of its own
            "FARM_CACHE": str(self.clone.folder / "cache"),
            "WORKERS": "0",  # for the few tests of the clone
            "SMALL": json.dumps({**SMALL, "serve": {"port": self.port}}),
            **({"WARM": self.clone.warm()} if self._is_warm else {}),
        }


def readers_environment() -> dict[str, str]:
    """What a reader's shell starts with: no farm on the path, no cluster."""
    folders = os.environ["PATH"].split(os.pathsep)
    without_farm = [one for one in folders if not (Path(one) / "farm").exists()]
    dropped = ("RAY_ADDRESS", "VIRTUAL_ENV", "FARM_STORE", "PYTHONPATH")
    kept = {name: value for name, value in environment().items() if name not in dropped}
    return {**kept, "PATH": os.pathsep.join(without_farm)}


def _program(call: str) -> str:
    """Python's source for a call of ``support.docs.warm``, with the path as it is without it."""
    return PROGRAM.format(tests=str(ROOT / "tests"), call=call)
