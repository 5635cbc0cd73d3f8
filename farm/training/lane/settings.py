"""What a lane is given: its settings, its line to the dispatcher, its judge.

Owns the two seams of a lane (each with two real implementations) and the plain settings. The judge
comes from above, from ``farm.quality``; training never imports it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from PIL import Image

from farm.adapters.bank.bank import Bank
from farm.adapters.files.folder import Form
from farm.base.interface import Base
from farm.intake.job import JobSpec
from farm.intake.scoring import ScoringSettings
from farm.training.dispatch.messages import LaneOrders, LaneReport
from farm.training.priors.storage import PriorArrays

__all__ = ["Judge", "JudgeMaker", "Judged", "LaneSettings", "Link", "Pictures", "SampleSettings"]


class Link(Protocol):
    """The lane's line to the dispatcher: a call in this process, or a Ray actor."""

    def exchange(self, report: LaneReport) -> LaneOrders:
        """Report and be told. Raises LaneLost where the dispatcher is gone for good."""

    def prior(self, prior_key: str) -> PriorArrays:
        """A prior set; one read-only copy per node where that can be. Raises StoreError."""


@dataclass(frozen=True)
class Judged:
    """What a judge made of one adapter."""

    card: dict[str, Any] | None
    """Goes into ``adapter.json``."""
    pictures: tuple[Image.Image, ...] = ()
    """Goes beside the samples."""


@dataclass(frozen=True)
class Pictures:
    """What generating pictures costs."""

    num: int
    rows: int
    """Forward rows of the denoiser."""


class Judge(Protocol):
    """Scores finishing adapters while they still sit in the bank (``farm.quality``)."""

    def judge(
        self,
        base: Base,
        bank: Bank,
        specs: Mapping[int, JobSpec],
        photos: Mapping[int, Sequence[Image.Image]],
        curves: Mapping[int, Any],
    ) -> dict[int, Judged]:
        """By slot. Any error is written on the card and stops nothing.

        Args:
            photos: as they were prepared for training: of the checked digests, turned upright.
        """

    def pictures(self, base_name: str, specs: Sequence[JobSpec]) -> Pictures:
        """What the cards of these jobs will cost, for the plan; loads nothing."""


JudgeMaker = Callable[[ScoringSettings], Judge]
"""Makes a lane's judge. A function or class of a module, so that it travels to the lanes."""


@dataclass(frozen=True)
class SampleSettings:
    """How sample pictures are drawn."""

    steps: int = 25
    guidance: float = 5.0
    per_prompt: int = 1
    """Pictures of each sample prompt; 0 draws none."""


@dataclass(frozen=True)
class LaneSettings:
    """How a lane works; the same for all lanes of a run."""

    slots: int = 4
    checkpointing: bool = False
    compile: bool = False
    samples: SampleSettings = field(default_factory=SampleSettings)
    forms: tuple[Form, ...] = ("diffusers", "peft", "kohya")
    beat_s: float = 1.0
    """Seconds between two words to the dispatcher when nothing happens."""
    prepare_threads: int = 1
    publish_threads: int = 2
