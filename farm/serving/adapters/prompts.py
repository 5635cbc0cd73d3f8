"""Prompt embeddings, encoded once and cached.

Owns the text side of serving: the text encoder's own bank, into which an adapter's text layers are
copied when a prompt has to be encoded with them, and the cache of encoded prompts. Because results
are cached by adapter and prompt, a few slots serve any number of adapters.

Used by one thread at a time (the engine's preparing thread). The denoiser has a separate bank, so
that encoding and denoising never affect each other's routing.

Legend: K adapters on one prompt, T tokens, D width; R is always 1 here.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence

import torch

from farm.adapters.bank.mixed import MixedBank
from farm.adapters.bank.row_weights import RowWeights
from farm.adapters.weights import AdapterWeights
from farm.base.interface import Base, Conditioning
from farm.serving.request import GenerationRequest

__all__ = ["TEXT_ENCODER", "PromptCache", "cut_notes", "has_text_layers"]

TEXT_ENCODER = "text_encoder"
"""The text encoder's name among a base's components."""

_TextKey = tuple[tuple[tuple[str, float], ...], str]


def has_text_layers(weights: AdapterWeights) -> bool:
    """Whether an adapter changes the text encoder."""
    return TEXT_ENCODER in weights.components


def cut_notes(base: Base, request: GenerationRequest) -> list[str]:
    """Notes for the caller on parts of the prompts that the text encoder did not read."""
    prompts = [("prompt", request.prompt)]
    if request.guided:
        prompts.append(("negative_prompt", request.negative_prompt))
    return [
        f"{name}: the model reads {base.memory.tokens} tokens; it did not read its end: {unread}"
        for name, prompt in prompts
        if (unread := base.unread(prompt))
    ]


class PromptCache:
    """Encodes prompts under any adapters, with a cache keyed by adapters and prompt."""

    def __init__(self, base: Base, *, max_adapters: int, max_prompts: int) -> None:
        """Open a bank on the text encoder.

        Args:
            max_adapters: on one prompt; 0 encodes with the bare text encoder alone.
            max_prompts: encoded prompts cached; one of Stable Diffusion v1-5 takes 118 kB.
        """
        self._base = base
        self._max_prompts = max_prompts
        self.bank = MixedBank(
            base, TEXT_ENCODER, num_slots=max_adapters, max_per_row=max(1, max_adapters)
        )
        self._rows = RowWeights(self.bank)
        self._known: OrderedDict[_TextKey, Conditioning] = OrderedDict()
        self.num_hits = 0
        self.num_encoded = 0

    def close(self) -> None:
        """Restore the text encoder's own layers."""
        self.bank.close()

    @torch.no_grad()
    def encode(
        self, prompt: str, adapters: Sequence[tuple[str, AdapterWeights, float]]
    ) -> Conditioning:
        """One encoded prompt, one row.

        Args:
            adapters: key, weights and factor of the adapters that have text layers.
        """
        key = (tuple((key, factor) for key, _, factor in adapters), prompt)
        known = self._known.get(key)
        if known is not None:
            self.num_hits += 1
            self._known.move_to_end(key)
            return known
        self.num_encoded += 1
        encoded = self._encode(prompt, adapters)
        self._known[key] = encoded
        while len(self._known) > self._max_prompts:
            self._known.popitem(last=False)
        return encoded

    def _encode(
        self, prompt: str, adapters: Sequence[tuple[str, AdapterWeights, float]]
    ) -> Conditioning:
        if not adapters:
            return self._base.encode_prompts([prompt])
        for slot, (_, weights, _) in enumerate(adapters):
            self.bank.set_slot(slot, weights.of_component(TEXT_ENCODER))
        self._rows.assign([range(len(adapters))], [[factor for _, _, factor in adapters]])
        with self._rows.active():
            return self._base.encode_prompts([prompt])

    def forget(self, keys: Collection[str]) -> None:
        """Drop the prompts encoded with these adapters."""
        for known in list(self._known):
            if any(key in keys for key, _ in known[0]):
                del self._known[known]
