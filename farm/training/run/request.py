"""What a run is asked for, what is known before it starts, and how it ended: plain values.

Owns no behaviour: ``prepare_run`` fills in, ``run`` executes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

from farm.adapters.files.folder import Form
from farm.base.interface import MemoryFacts
from farm.intake.check import CheckReport
from farm.intake.job import PriorSpec
from farm.intake.manifest import Manifest
from farm.intake.scoring import ScoringSettings
from farm.storage import Store
from farm.training.dispatch.messages import Assignment, DispatchSettings, Notice, Snapshot
from farm.training.lane.settings import JudgeMaker, SampleSettings
from farm.training.plan.hardware import Hardware
from farm.training.plan.plan import Plan
from farm.training.run.failures import JobFailure

__all__ = ["RunBase", "PreparedRun", "RunRequest", "RunSummary", "RunView"]


@dataclass(frozen=True)
class RunRequest:
    """What the user asked for."""

    manifest: str
    store: str
    base: str = "embedded"
    revision: str | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """Recipe fields that win over the manifest's, for every subject."""
    executor: Literal["ray", "local"] = "ray"
    """``ray``, or ``local`` for one lane in this process."""
    address: str | None = None
    """Of an existing Ray cluster; None starts one on this machine."""
    hardware: Hardware | None = None
    """None looks at this machine, or at the cluster."""
    slots: int | None = None
    lanes: int | None = None
    """Per node."""
    gpu_fraction: float | None = None
    checkpointing: bool | None = None
    compile: bool = False
    samples: SampleSettings = field(default_factory=SampleSettings)
    forms: tuple[Form, ...] = ("diffusers", "peft", "kohya")
    dispatch: DispatchSettings = field(default_factory=DispatchSettings)
    make_judge: JudgeMaker | None = None
    """Makes each lane's judge, such as ``farm.quality.judge.QualityJudge``; None: no quality
    cards."""
    scoring: ScoringSettings = ScoringSettings()
    """What the judge is made with; the manifest's defaults stand in for fields that are None."""
    skip_faulty: bool = False
    """Train the good subjects of a manifest that has bad ones."""
    take_over: bool = False
    """Take the run from a driver that seems alive."""
    beat_s: float = 1.0
    node_timeout_s: float | None = None
    """How long nodes may take to come before the user is told what is missing; None takes 10 min
    on an autoscaling cluster, 1 min on a fixed one."""


@dataclass(frozen=True)
class RunBase:
    """What the driver keeps of the base: it never trains."""

    name: str
    fingerprint: str
    resolution_px: int
    memory: MemoryFacts


@dataclass(frozen=True)
class PreparedRun:
    """A run that could start: everything is known and nothing is spent."""

    request: RunRequest
    run_id: str
    store: Store
    base: RunBase
    assignments: tuple[Assignment, ...]
    committed: frozenset[str]
    """Keys found in the store."""
    priors: tuple[PriorSpec, ...]
    """Missing prior sets, in the order of their first need."""
    plan: Plan | None
    """None where nothing is left to train."""
    num_rejected: int = 0
    """Subjects left out for their faults."""
    manifest: Manifest | None = None
    check: CheckReport | None = field(default=None, repr=False)

    @property
    def num_to_train(self) -> int:
        """Jobs that are not committed."""
        return len(self.assignments) - len(self.committed)


@dataclass(frozen=True)
class RunSummary:
    """How a run ended."""

    run: str
    jobs: int
    committed: int
    """By this start of the run."""
    reused: int
    """Found in the store."""
    failed: int
    """Without an adapter, whatever the reason."""
    quarantined: int
    """Of those, given up after several attempts."""
    cancelled: int
    seconds: float
    failures: tuple[JobFailure, ...] = ()
    """Each job without an adapter, with reason and remedy."""

    @property
    def exit_code(self) -> int:
        """0 all good, 4 some failed, 5 all failed."""
        if not self.failed:
            return 0
        return 4 if self.committed + self.reused else 5

    def to_json(self) -> dict[str, Any]:
        """Plain values, ``failures`` left out."""
        facts = asdict(self)
        del facts["failures"]
        return facts | {"seconds": round(self.seconds, 3)}


class RunView(Protocol):
    """Where a run shows itself: the live table, or plain lines."""

    def show(self, snapshot: Snapshot, news: Sequence[Notice]) -> None:
        """Called about once a second."""
