"""The request, the preparation and the summary of a run: plain values.

No behaviour: ``prepare_run`` prepares a run, and ``execute_run`` executes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from farm.base.memory import MemoryFacts
from farm.errors import Fault
from farm.intake.job import PriorSpec
from farm.intake.scoring import ScoringSettings
from farm.recipe import Quantization
from farm.storage import Store
from farm.training.dispatch.messages import DispatchSettings, Notice, Snapshot
from farm.training.dispatch.run_jobs import RunJobs
from farm.training.lane.settings import JudgeMaker, SampleSettings
from farm.training.plan.hardware import Hardware
from farm.training.plan.plan import Plan
from farm.training.run.failures import JobFailure

if TYPE_CHECKING:  # with torch, which a plan does not need
    from farm.adapters.files.folder import Form

__all__ = ["RunBase", "PreparedRun", "RunRequest", "RunSummary", "ProgressView"]


@dataclass(frozen=True)
class RunRequest:
    """The run that the user requests."""

    manifest: str
    store: str
    base: str = "embedded"
    revision: str | None = None
    quantization: Quantization | None = None
    """Keeps the base's denoiser in few bits on the lanes; adapters stay in full precision."""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """Recipe fields for every subject; they override the manifest."""
    executor: Literal["ray", "local"] = "ray"
    """``ray``, or ``local`` for one lane in this process."""
    address: str | None = None
    """Address of an existing Ray cluster; None starts Ray on this machine."""
    hardware: Hardware | None = None
    """None means the hardware of the cluster, or of this machine."""
    slots: int | None = None
    lanes: int | None = None
    """Per node."""
    gpu_fraction: float | None = None
    checkpointing: bool | None = None
    compile: bool | None = None
    """Compile the denoiser's training pass; None lets the plan choose: on GPUs, if it pays."""
    samples: SampleSettings = field(default_factory=SampleSettings)
    forms: tuple[Form, ...] = ("diffusers", "peft", "kohya")
    dispatch: DispatchSettings = field(default_factory=DispatchSettings)
    make_judge: JudgeMaker | None = None
    """Makes the judge of each lane, such as ``farm.quality.judge.QualityJudge``; None makes no
    quality cards."""
    scoring: ScoringSettings = ScoringSettings()
    """Settings of the judge; None fields take the manifest's defaults."""
    skip_faulty: bool = False
    """Train the valid subjects of a manifest with faults."""
    take_over: bool = False
    """Take the run over from a driver that seems alive."""
    beat_s: float = 1.0
    node_timeout_s: float | None = None
    """How long to wait for nodes before they are reported missing; None means 10 min on an
    autoscaling cluster, 1 min on a fixed one."""


@dataclass(frozen=True)
class RunBase:
    """Facts about the base that the driver keeps; it never trains."""

    name: str
    fingerprint: str
    resolution_px: int
    memory: MemoryFacts
    recipe: Mapping[str, object] = field(default_factory=dict)
    """Recipe fields of the base's family; see ``Base.recipe``."""


@dataclass(frozen=True)
class PreparedRun:
    """A run that is ready to start."""

    request: RunRequest
    run_id: str
    store: Store
    base: RunBase
    jobs: RunJobs
    committed: frozenset[str]
    """Keys of the jobs that are committed in the store."""
    priors: tuple[PriorSpec, ...]
    """Missing prior sets, in the order in which they are needed."""
    plan: Plan | None
    """None if nothing is left to train."""
    num_rejected: int = 0
    """Subjects excluded for their faults."""
    manifest_parquet: bytes | None = field(default=None, repr=False)
    """The resolved manifest; None for a run that was read from the store, and for a plan."""
    warnings: tuple[Fault, ...] = field(default=(), repr=False)
    """Warnings of the check."""
    revoked: tuple[str, ...] = ()
    """``namespace/name`` of committed adapters that are revoked, sorted: none is trained again."""
    num_revoked: int = 0
    """How many of the committed jobs have a revoked adapter."""

    @property
    def num_to_train(self) -> int:
        """Number of jobs that are not committed."""
        return len(self.jobs) - len(self.committed)


@dataclass(frozen=True)
class RunSummary:
    """The result of a run."""

    run: str
    jobs: int
    committed: int
    """Trained and committed by this start of the run."""
    reused: int
    """Already committed, found in the store."""
    revoked: int
    """How many of those found are revoked: endpoints refuse them, and none was trained again."""
    failed: int
    """Without an adapter, for any reason."""
    quarantined: int
    """Jobs that are not retried any more after several failed attempts."""
    cancelled: int
    seconds: float
    """Of this start alone."""
    start: int = 1
    """How many times the run was started, this time included."""
    failures: tuple[JobFailure, ...] = ()
    """Every failed job, with reason and remedy."""

    @property
    def exit_code(self) -> int:
        """0 if all succeeded, 4 if some failed, 5 if all failed."""
        if not self.failed:
            return 0
        return 4 if self.committed + self.reused else 5

    def to_json(self) -> dict[str, Any]:
        """Plain values, without ``failures`` and ``start``."""
        facts = asdict(self)
        del facts["failures"], facts["start"]
        return facts | {"seconds": round(self.seconds, 3)}


class ProgressView(Protocol):
    """Shows the progress of a run: the live table, plain lines, or a log."""

    def show(self, snapshot: Snapshot, news: Sequence[Notice]) -> None:
        """Called about once a second."""
