"""What the tests of write paths write: adapters as lanes save them, and checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from farm.adapters.file_names import RECORD_FILE
from farm.adapters.record import AdapterRecord
from farm.adapters.weights import AdapterWeights, LayerWeights
from farm.keys import bytes_digest
from farm.recipe import Recipe
from farm.training.slots.checkpoint import SlotState
from support.assignments import FINGERPRINT


def saved_adapter(folder: Path, key: str, files: Mapping[str, bytes]) -> tuple[AdapterRecord, Path]:
    """An adapter named kira, saved to a folder with its record."""
    record = AdapterRecord(
        job_key=key,
        subject_id="kira",
        name="kira",
        class_noun="cat",
        instance_prompt="a photo of sks cat",
        base_id="tiny",
        base_fingerprint=FINGERPRINT,
        recipe=Recipe(steps=1),
        files={name: bytes_digest(data) for name, data in files.items()},
    )
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    (folder / RECORD_FILE).write_text(record.to_json())
    return record, folder


def slot_state(key: str, step: int) -> SlotState:
    """A checkpoint whose weights equal its step."""

    def weights() -> AdapterWeights:
        layer = LayerWeights(torch.full((1, 2), float(step)), torch.full((2, 1), float(step)))
        return AdapterWeights.with_alpha({"unet.to_q": layer}, 1.0)

    return SlotState(key, step, weights(), weights(), weights())
