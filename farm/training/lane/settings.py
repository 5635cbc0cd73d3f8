"""A lane's settings, its link to the dispatcher, and its judge.

Owns the two interfaces of a lane (each with two implementations) and the plain settings. The judge
is passed in from ``farm.quality``, which training never imports.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from farm.intake.job import JobSpec
from farm.intake.scoring import ScoringSettings
from farm.recipe import Recipe
from farm.training.dispatch.messages import LaneOrders, LaneReport

if TYPE_CHECKING:  # Ray's controllers read these settings: without torch and diffusers they start
    # seconds earlier
    from PIL import Image

    from farm.adapters.bank.bank import Bank
    from farm.adapters.files.folder import Form
    from farm.base.interface import Base
    from farm.training.priors.storage import PriorArrays

__all__ = ["Judge", "JudgeMaker", "Judged", "LaneSettings", "Link", "Pictures", "SampleSettings"]


class Link(Protocol):
    """The lane's link to the dispatcher: a call in this process, or a Ray actor."""

    def exchange(self, report: LaneReport) -> LaneOrders:
        """Send a report and return the orders. Raises LaneLost if the dispatcher is gone."""

    def prior(self, prior_key: str) -> PriorArrays:
        """A prior set; a read-only copy, shared per node if possible. Raises StoreError."""


@dataclass(frozen=True)
class Judged:
    """A judge's result for one adapter."""

    card: dict[str, Any] | None
    """Written to ``adapter.json``."""
    pictures: tuple[Image.Image, ...] = ()
    """Stored beside the samples."""


@dataclass(frozen=True)
class Pictures:
    """The number of generated images, and their cost."""

    num: int
    rows: int
    """Forward rows of the denoiser."""
    notes: tuple[str, ...] = ()
    """What the plan should say about them, such as why an adapter is not scored."""


class JobKind(NamedTuple):
    """What determines the cost of a job's quality card."""

    recipe: Recipe
    class_noun: str
    class_prompt: str


class Judge(Protocol):
    """Scores finished adapters while they are still in the bank (``farm.quality``)."""

    def judge(
        self,
        base: Base,
        bank: Bank,
        specs: Mapping[int, JobSpec],
        photos: Mapping[int, Sequence[Image.Image]],
        curves: Mapping[int, Any],
    ) -> dict[int, Judged]:
        """Results by slot. An error is written to the card; it does not stop the run.

        Args:
            photos: as prepared for training: checked against their digests, upright.
        """

    def pictures(self, base_name: str, kinds: Sequence[tuple[JobKind, int]]) -> Pictures:
        """The cost of the cards of a number of jobs of each kind, for the plan; loads no model."""


JudgeMaker = Callable[[ScoringSettings], Judge]
"""Creates a lane's judge. A module-level function or class, so that it can be pickled."""


@dataclass(frozen=True)
class SampleSettings:
    """How sample images are generated."""

    steps: int = 25
    guidance: float = 5.0
    per_prompt: int = 1
    """Images of each sample prompt; 0 generates none."""


@dataclass(frozen=True)
class LaneSettings:
    """How a lane works; the same for all lanes of a run."""

    slots: int = 4
    checkpointing: bool = False
    compile: bool | None = None
    """Compile the denoiser's training pass; None compiles on GPUs. A run follows its plan."""
    samples: SampleSettings = field(default_factory=SampleSettings)
    forms: tuple[Form, ...] = ("diffusers", "peft", "kohya")
    finish_beside: bool | None = None
    """Generate samples and quality cards beside the training of other slots; None does so on GPUs.
    """
    beat_s: float = 1.0
    """Seconds between two reports to the dispatcher without events."""
    prepare_threads: int = 1
    publish_threads: int = 2
