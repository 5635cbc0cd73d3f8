"""One round: a cluster, a store and a run, faults until they are spent, then the checks."""

from __future__ import annotations

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
from farm.training.execute import run_manifest
from farm.training.lane.settings import SampleSettings
from support.chaos.checks import Findings, check_round
from support.chaos.cluster import Cluster
from support.chaos.faults import HEAVY, KINDS, Pending
from support.chaos.ledger_view import Fault, LedgerView
from support.chaos.store_proxy import StoreProxy
from support.manifests import request, write_manifest
from support.ray_head import BIN
from support.s3 import BUCKET, CREDENTIALS

TICK_S, LEDGER_S = 0.25, 1.5
FINISH_S = 600.0
"""How long a run may take to end after its last fault."""
EARLY_PAUSES = 6
LEAD, SLOWEST_PACES = 0.1, 4.0
"""Where jobs are ahead of the faults by this share of a round, the pace is this much slower."""
LEAD_FAULTS = 2.5
"""A lead is at least this many faults: of a few faults, one is a large share."""
RECIPE = {"crops_per_photo": 1, "num_prior_images": 4, "checkpoint_every": 10}
OPTIONS = ("--base", "tiny", "--no-cards", "--no-report", "--samples", "0", "--yes")
SLOTS, REFERENCE_SLOTS = "3", 8
DONE, SOME_FAILED = 0, (4, 5)
KILLED = -9
GONE = (psutil.Error, RuntimeError, KeyError)
"""What was to be hit, or to be healed, has gone meanwhile."""


@dataclass(frozen=True)
class Size:
    """What a round runs."""

    subjects: int
    steps: int
    nodes: int
    """Nodes with a lane; the cluster has ``spare_nodes`` more."""
    spare_nodes: int
    with_priors: bool
    pace_s: float
    """Seconds that a lane waits after each step, so that jobs last without costing CPU time."""


@dataclass
class Outcome:
    """What a round did and found."""

    subjects: int
    faults: list[Fault]
    findings: Findings
    seconds: float
    starts: int
    """Starts of the driver."""
    is_checked: bool = True
    """Whether the round came to its checks."""
    seed: int = 0
    ends: list[str] = field(default_factory=list)
    """How drivers ended that no fault had killed, but the last."""
    other_steps_lost: int = 0


class Round:
    """A round in progress; faults read and change it."""

    def __init__(self, folder: Path, endpoint: str, size: Size, *, seed: int) -> None:
        folder.mkdir(parents=True)
        self.folder, self.size, self.subjects, self._seed = folder, size, size.subjects, seed
        random.seed(seed)
        recipe = RECIPE | {"steps": size.steps} | ({} if size.with_priors else {"prior_rows": 0})
        self.manifest = write_manifest(
            folder / "m", size.subjects, recipe=recipe, first_seed=random.randrange(10**6)
        )
        self.proxy = StoreProxy(endpoint)
        os.environ |= CREDENTIALS | {"AWS_ENDPOINT_URL": endpoint}
        url = f"s3://{BUCKET}/{folder.name}"
        self.ledger = LedgerView(Store(url))
        self.cluster = Cluster(
            folder,
            self.proxy.endpoint,
            num_nodes=size.nodes + size.spare_nodes,
            num_cpus=2 if size.with_priors else 1,
        )
        self.driver: Popen[bytes] | None = None
        self.is_head_lost = self.store_is_failing = False
        self.starts = 0
        self.ends: list[str] = []
        self._pending: list[Pending] = []
        self._deck: list[str] = []
        self._num_faults = 0
        self._is_in_order = False
        self._began = 0.0
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
        self,
        deck: Sequence[str],
        *,
        pause_s: float,
        is_over: Callable[[], bool],
        changed: Callable[[], None] = lambda: None,
        in_order: bool = False,
    ) -> Outcome:
        """Inject faults until they are spent or all jobs have ended, then check.

        Args:
            deck: the kind of each fault.
            in_order: whether they are injected in this order, else in random order.
            is_over: whether to inject no more faults, because the time is over.
            changed: called after each fault.
        """
        self._deck, self._num_faults = list(deck), len(deck)
        self._is_in_order = in_order
        self._began = time.monotonic()
        try:
            self.cluster.set_pace(self.size.pace_s)
            self.cluster.start()
            self._inject_all(pause_s, is_over, changed)
            is_complete = self._finish(time.monotonic() + FINISH_S)
            self.ledger.refresh()
            self._train_undisturbed()
            findings = check_round(self, is_complete=is_complete)
        finally:
            self._close()
        findings.processes += self.cluster.left_over()
        return self.outcome(findings)

    def outcome(self, findings: Findings | None = None) -> Outcome:
        """What the round did; without findings, so far."""
        return Outcome(
            self.subjects,
            self.ledger.faults,
            findings or Findings(),
            time.monotonic() - self._began,
            self.starts,
            findings is not None,
            self._seed,
            self.ends,
            self.ledger.count_lost_steps() if findings is not None else 0,
        )

    def _inject_all(
        self, pause_s: float, is_over: Callable[[], bool], changed: Callable[[], None]
    ) -> None:
        began, waits, looked, has_trained = time.monotonic(), 0.0, 0.0, False
        while self._deck and not is_over():
            time.sleep(TICK_S)
            if self._tend_driver() == DONE:
                return
            self._end_due()
            if not self.is_head_lost:
                self.cluster.tend_nodes()
            if time.monotonic() - looked > LEDGER_S:
                self.ledger.refresh()
                looked = time.monotonic()
                self._set_pace()
            if self.ledger.num_open() == 0:
                return
            has_trained = has_trained or self.ledger.has_progress_since(0.0)
            pause = pause_s * (1 if has_trained else EARLY_PAUSES)  # most are to hit lanes at work
            is_due = time.monotonic() > began + waits * pause or self._lead() >= 1
            if self.ledger.num_open() > 0 and is_due and self._inject():
                began, waits = time.monotonic(), random.expovariate(1.0)
                changed()

    def _set_pace(self) -> None:
        """Let jobs and faults come to their ends together."""
        lead = self._lead()
        share = 1 + lead if lead < 0 else 1 + (SLOWEST_PACES - 1) * lead
        self.cluster.set_pace(round(self.size.pace_s * min(SLOWEST_PACES, max(0.0, share)), 2))

    def _lead(self) -> float:
        """How far jobs are ahead of the faults; 1 is too far, below 0 they are behind."""
        jobs = 1 - max(0, self.ledger.num_open()) / self.subjects if self.ledger.events else 0.0
        faults = len(self.ledger.faults) / self._num_faults
        return (jobs - faults) / max(LEAD, LEAD_FAULTS / self._num_faults)

    def _inject(self) -> bool:
        name = self._deck[0] if self._is_in_order else random.choice(self._deck)
        if self.is_head_lost or (name in HEAVY and not self._may_be_heavy()):
            return False
        fault = None
        with suppress(*GONE):
            fault = KINDS[name][1](self)
        if fault is None:
            return False
        self._deck.remove(name)
        seconds = time.monotonic() - self._began
        print(f"  {seconds:5.0f} s: {name}", file=sys.stderr, flush=True)
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
        self.cluster.set_pace(0.0)
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
                    *("--nodes", str(self.size.nodes), "--cpus", "1", "--slots", SLOTS),
                    *("--plain", "--json", *OPTIONS),
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

    def _train_undisturbed(self) -> None:
        """The same manifest without faults, in this process with a folder as the store."""
        samples = SampleSettings(per_prompt=0)
        store = self.folder / "reference"
        run_manifest(request(self.manifest, store, slots=REFERENCE_SLOTS, samples=samples))

    def _close(self) -> None:
        if self.driver is not None and self.driver.poll() is None:
            self.driver.kill()
            self.driver.wait()
        with suppress(FarmError):
            self.cluster.close()
        self.proxy.refuse()
