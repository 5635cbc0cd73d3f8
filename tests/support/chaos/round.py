"""One round: a cluster, a store and a run, faults until they are spent, then the checks."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import Popen

import psutil

from farm.errors import FarmError
from farm.storage import Store
from support.chaos.checks import Findings, check_round
from support.chaos.cluster import Cluster
from support.chaos.faults import HEAVY, KINDS, Pending
from support.chaos.ledger_view import Fault, LedgerView
from support.chaos.store_proxy import StoreProxy
from support.manifests import write_manifest
from support.ray_head import BIN
from support.s3 import BUCKET, CREDENTIALS

TICK_S, LEDGER_S = 0.25, 1.5
EARLY_PAUSES = 10
RECIPE = {"crops_per_photo": 1, "num_prior_images": 4, "checkpoint_every": 10}
SAME = ("--base", "tiny", "--slots", "3", "--no-cards", "--no-report", "--samples", "0", "--yes")
DONE, SOME_FAILED = 0, (4, 5)
KILLED = -9
GONE = (psutil.Error, RuntimeError, KeyError)
"""What was to be hit, or to be healed, has gone meanwhile."""


@dataclass
class Outcome:
    """What a round did and found."""

    subjects: int
    faults: list[Fault]
    findings: Findings
    seconds: float
    starts: int
    """Starts of the driver."""
    ends: list[str] = field(default_factory=list)
    """How drivers ended that no fault had killed, but the last."""
    other_steps_lost: int = 0


class Round:
    """A round in progress; faults read and change it."""

    def __init__(
        self,
        folder: Path,
        endpoint: str,
        *,
        subjects: int,
        steps: int,
        with_priors: bool,
        nodes: int,
    ) -> None:
        folder.mkdir(parents=True)
        self.folder, self.subjects = folder, subjects
        recipe = RECIPE | {"steps": steps} | ({} if with_priors else {"prior_rows": 0})
        self.manifest = write_manifest(
            folder / "m", subjects, recipe=recipe, first_seed=random.randrange(10**6)
        )
        self.proxy = StoreProxy(endpoint)
        self._reference: Popen[bytes] | None = None
        os.environ |= CREDENTIALS | {"AWS_ENDPOINT_URL": endpoint}
        url = f"s3://{BUCKET}/{folder.name}"
        self.ledger = LedgerView(Store(url))
        self.cluster = Cluster(
            folder, self.proxy.endpoint, num_nodes=nodes, num_cpus=2 if with_priors else 1
        )
        self.driver: Popen[bytes] | None = None
        self.is_head_lost = self.store_is_failing = False
        self.starts = 0
        self.ends: list[str] = []
        self._pending: list[Pending] = []
        self._deck: list[str] = []
        self._last_heavy: float | None = None

    # -- what faults use ----------------------------------------------------------------------

    def later(self, seconds: float, end: Callable[[], object]) -> None:
        """Call something after this long, or when the faults are over."""
        self._pending.append(Pending(time.monotonic() + seconds, end))

    def add_node(self) -> None:
        """Start another node, unless there is no head for it."""
        if not self.is_head_lost:
            self.cluster.add_node()

    # -- the round ----------------------------------------------------------------------------

    def run(
        self, *, faults: int, pause_s: float, limit_s: float, kinds: Sequence[str] = ()
    ) -> Outcome:
        """Inject faults until they are spent or all jobs have ended, then check.

        Args:
            kinds: inject each of these once, in random order; by default, any by their weights.
        """
        self._deck = list(kinds)
        began = time.monotonic()
        try:
            self.cluster.start()
            self._reference = reference = self._start_reference()
            due, looked = time.monotonic(), 0.0
            while len(self.ledger.faults) < faults and time.monotonic() - began < limit_s:
                time.sleep(TICK_S)
                if self._tend_driver() == DONE:
                    break
                self._end_due()
                if not self.is_head_lost:
                    self.cluster.tend_nodes()
                if time.monotonic() - looked > LEDGER_S:
                    self.ledger.refresh()
                    looked = time.monotonic()
                if self.ledger.num_open() == 0:
                    break
                if self.ledger.num_open() > 0 and time.monotonic() > due and self._inject():
                    # most faults are to hit lanes that train
                    is_early = not self.ledger.has_progress_since(0.0)
                    pause = pause_s * (EARLY_PAUSES if is_early else 1)
                    due = time.monotonic() + random.expovariate(1 / pause)
            is_complete = self._finish(began + limit_s)
            self.ledger.refresh()
            reference.wait()
            findings = check_round(self, is_complete=is_complete)
        finally:
            self._close()
        findings.processes += self.cluster.left_over()
        return Outcome(
            self.subjects,
            self.ledger.faults,
            findings,
            time.monotonic() - began,
            self.starts,
            self.ends,
            self.ledger.count_lost_steps(),
        )

    def _inject(self) -> bool:
        names = self._deck or list(KINDS)
        (name,) = random.choices(names, [KINDS[one][0] for one in names])
        if self.is_head_lost or (name in HEAVY and not self._may_be_heavy()):
            return False
        fault = None
        with suppress(*GONE):
            fault = KINDS[name][1](self)
        if fault is None:
            return False
        if name in self._deck:
            self._deck.remove(name)
        print(f"  {name}", file=sys.stderr, flush=True)
        if name in HEAVY:
            self._last_heavy = time.monotonic()
        # before the first step there is nothing to recover
        fault.is_measured &= self.ledger.has_progress_since(0.0)
        self.ledger.faults.append(fault)
        return True

    def _may_be_heavy(self) -> bool:
        since = self._last_heavy
        return since is None or self.ledger.has_progress_since(since)

    def _end_due(self) -> None:
        now = time.monotonic()
        for one in [one for one in self._pending if one.due <= now]:
            self._pending.remove(one)
            with suppress(*GONE):
                one.end()

    def _finish(self, until: float) -> bool:
        """End all faults, and run until every job has an adapter."""
        for one in self._pending:
            with suppress(*GONE):
                one.end()
        self._pending.clear()
        self.cluster.set_clock(0.0)
        while time.monotonic() < until:
            if not self.is_head_lost:
                self.cluster.tend_nodes()
            if self._tend_driver() == DONE:
                return True
            self.ledger.refresh()
            time.sleep(TICK_S)
        return False

    # -- processes ----------------------------------------------------------------------------

    def _tend_driver(self) -> int | None:
        """Start the driver, again if it has ended; returns the code of one that has just ended."""
        code = None
        if self.driver is not None:
            code = self.driver.poll()
            if code is None:
                return None
            if code == DONE:
                return DONE
            if code != KILLED:
                self.ends.append(f"code {code}: {self._last_line()}")
        if code in SOME_FAILED and self.ledger.run_id:
            self._retry()
        if self.is_head_lost:
            self.cluster.restart()
            self.is_head_lost = False
        for photo in self.manifest.parent.rglob("*.kept"):  # the driver reads the whole manifest
            photo.replace(photo.with_suffix(".png"))
        self.starts += 1
        with self._log().open("wb") as output:
            self.driver = subprocess.Popen(
                [
                    *(str(BIN / "farm"), "run", str(self.manifest), "--store"),
                    *(self.ledger.store.url, "--address", self.cluster.head.gcs),
                    *("--nodes", "2", "--cpus", "1", "--plain", "--json", *SAME),
                ],
                env=self.cluster.driver_env(),
                stdout=output,
                stderr=output,
            )
        return code

    def _retry(self) -> None:
        """Ask for another attempt of quarantined jobs; the next start reads it."""
        subprocess.run(
            [
                *(str(BIN / "farm"), "retry", self.ledger.run_id),
                *("--store", self.ledger.store.url),
            ],
            env=self.cluster.driver_env(),
            check=False,
            capture_output=True,
        )

    def _log(self) -> Path:
        return self.folder / f"driver-{self.starts}.log"

    def _last_line(self) -> str:
        lines = self._log().read_text(errors="replace").splitlines()
        errors = [line for line in lines if line.startswith("error")]
        return (errors or lines or [""])[-1][:300]

    def summary(self) -> dict[str, object]:
        """The JSON line of the last driver."""
        with suppress(ValueError, IndexError):
            found: dict[str, object] = json.loads(self._log().read_text().splitlines()[-1])
            return found
        return {}

    def _start_reference(self) -> Popen[bytes]:
        """The same manifest without faults, in one process with a folder as the store."""
        with (self.folder / "reference.log").open("wb") as output:
            return subprocess.Popen(
                [
                    *(str(BIN / "farm"), "run", str(self.manifest), "--in-process", "--plain"),
                    *("--store", str(self.folder / "reference"), *SAME),
                ],
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                stdout=output,
                stderr=output,
            )

    def _close(self) -> None:
        for process in (self.driver, self._reference):
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()
        with suppress(FarmError):
            self.cluster.close()
        self.proxy.refuse()
