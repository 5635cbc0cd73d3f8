"""A slot's resumable state: everything that later steps depend on, and its history.

Owns the values and their files. Random streams need no state: they are keyed by (job seed, step).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from farm.adapters.weights import AdapterWeights, LayerWeights
from farm.errors import StoreError

__all__ = ["SlotState"]

VERSION = 1
TENSORS_NAME, FACTS_NAME = "state.safetensors", "state.json"
PARTS = ("weights", "first", "second", "best")


@dataclass(frozen=True)
class SlotState:
    """One job's training between two steps; resumed from it, training is bit-identical."""

    key: str
    step: int
    """Steps done."""
    weights: AdapterWeights
    first: AdapterWeights
    """Adam's first moments, in the adapter's shape."""
    second: AdapterWeights
    loss_curve: tuple[float, ...] = ()
    evaluation_curve: tuple[tuple[int, float], ...] = ()
    best: AdapterWeights | None = None
    """Weights at the best evaluation so far, if the recipe keeps them."""
    best_step: int = 0
    seconds: float = 0.0
    """The job's share of its lanes' time."""
    ended: str = ""
    """Why the training ended, of a job whose images are still missing; empty while it trains. Its
    weights are those to commit, of step ``best_step``, and it has no moments."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """The caller's own values."""

    @property
    def is_finite(self) -> bool:
        """Whether training can continue from it: no weight or moment is NaN or infinite."""
        return all(part.is_finite for part in (self.weights, self.first, self.second))

    def to_files(self) -> dict[str, bytes]:
        """The state as file names and bytes: tensors in safetensors, the rest in JSON."""
        tensors: dict[str, Tensor] = {}
        for part in PARTS:
            adapter: AdapterWeights | None = getattr(self, part)
            if adapter is None:
                continue
            for name, layer in adapter.layers.items():
                tensors[f"{part}/{name}/down"] = layer.down.contiguous()
                tensors[f"{part}/{name}/up"] = layer.up.contiguous()
        facts = {
            "version": VERSION,
            "key": self.key,
            "step": self.step,
            "alphas": dict(self.weights.alphas),
            "loss_curve": list(self.loss_curve),
            "evaluation_curve": [list(point) for point in self.evaluation_curve],
            "best_step": self.best_step,
            "seconds": self.seconds,
            "ended": self.ended,
            "facts": dict(self.facts),
        }
        return {TENSORS_NAME: save_tensors(tensors), FACTS_NAME: json.dumps(facts).encode()}

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> SlotState:
        """Read the state that ``to_files`` wrote.

        Raises:
            StoreError: if a file is missing or damaged; an older checkpoint may be intact.
        """
        try:
            facts = json.loads(files[FACTS_NAME])
            tensors = load_tensors(files[TENSORS_NAME])
            if facts["version"] != VERSION:
                raise ValueError(f"version {facts['version']}")
            parts = {part: _adapter(tensors, part, facts["alphas"]) for part in PARTS}
            return cls(
                key=facts["key"],
                step=facts["step"],
                weights=parts["weights"],
                first=parts["first"],
                second=parts["second"],
                loss_curve=tuple(facts["loss_curve"]),
                evaluation_curve=tuple((int(s), float(v)) for s, v in facts["evaluation_curve"]),
                best=parts["best"] if parts["best"].layers else None,
                best_step=facts["best_step"],
                seconds=facts["seconds"],
                ended=facts.get("ended", ""),
                facts=facts["facts"],
            )
        except (KeyError, ValueError, TypeError, SafetensorError) as error:
            raise StoreError(f"a checkpoint cannot be read: {error!r}") from error

    def save(self, folder: str | Path) -> None:
        """Write the files to a local folder, the JSON last."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name, data in self.to_files().items():
            (Path(folder) / name).write_bytes(data)

    @classmethod
    def load(cls, folder: str | Path) -> SlotState:
        """Read what ``save`` wrote.

        Raises:
            StoreError: as for ``from_files``.
        """
        try:
            return cls.from_files(
                {name: (Path(folder) / name).read_bytes() for name in (TENSORS_NAME, FACTS_NAME)}
            )
        except OSError as error:
            raise StoreError(f"a checkpoint cannot be read: {error}") from error


def _adapter(
    tensors: Mapping[str, Tensor], part: str, alphas: Mapping[str, float]
) -> AdapterWeights:
    names = [name for name in alphas if f"{part}/{name}/down" in tensors]
    layers = {
        name: LayerWeights(tensors[f"{part}/{name}/down"], tensors[f"{part}/{name}/up"])
        for name in names
    }
    return AdapterWeights(layers, {name: alphas[name] for name in names})
