"""Prompt embeddings, encoded once and cached.

Owns the text side of serving: a bank for each text encoder, into which an adapter's text layers are
copied when a prompt has to be encoded with them, and the cache of encoded prompts. Because results
are cached by adapter and prompt, a few slots serve any number of adapters.

Used by one thread at a time (the engine's preparing thread). The denoiser has a separate bank, so
that encoding and denoising never affect each other's routing.

Legend: K adapters on one prompt, T tokens, D width; R is always 1 here.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch

from farm.adapters.bank.mixed import MixedBank
from farm.adapters.bank.row_weights import RowWeights
from farm.adapters.weights import AdapterWeights
from farm.base.generate import image_windows
from farm.base.interface import Base, Conditioning
from farm.serving.request import GenerationRequest

__all__ = ["PromptCache", "cut_notes", "has_text_layers", "request_windows"]

_TextKey = tuple[tuple[tuple[str, float], ...], str, bool, int]


def has_text_layers(base: Base, weights: AdapterWeights) -> bool:
    """Whether an adapter changes a text encoder."""
    return not set(base.text_names).isdisjoint(weights.components)


def request_windows(base: Base, request: GenerationRequest) -> int:
    """Windows of tokens in which the prompts of a request are read."""
    chunked = [request.long_prompts == "chunk"]
    negative = request.negative_prompt if base.needs_unprompted(request.guidance) else ""
    windows = image_windows(base, [request.prompt], negative, chunked)
    return 1 if windows is None else windows[0]


def cut_notes(base: Base, request: GenerationRequest) -> list[str]:
    """Notes for the caller on parts of the prompts that the text encoder did not read."""
    prompts = [("prompt", request.prompt)]
    if base.needs_unprompted(request.guidance):
        prompts.append(("negative_prompt", request.negative_prompt))
    windows, tokens = request_windows(base, request), base.memory.tokens
    reads = f"{windows} windows of {tokens} tokens" if windows > 1 else f"{tokens} tokens"
    notes = [
        f"{name}: the model reads {reads}; it did not read its end: {unread}"
        for name, prompt in prompts
        if (unread := base.unread(prompt, windows))
    ]
    if request.long_prompts == "chunk" and not base.reads_windows:
        notes.append(
            f"long_prompts: without effect on {base.family.title}, which reads {tokens} tokens"
        )
    return notes


class PromptCache:
    """Encodes prompts under any adapters, with a cache keyed by adapters and prompt."""

    def __init__(self, base: Base, *, max_adapters: int, max_prompts: int) -> None:
        """Open a bank on each text encoder.

        Args:
            max_adapters: on one prompt; 0 encodes with the bare text encoder alone.
            max_prompts: encoded prompts cached; one of Stable Diffusion v1-5 takes 118 kB.
        """
        self._base = base
        self._max_prompts = max_prompts
        self.banks = {
            name: MixedBank(base, name, num_slots=max_adapters, max_per_row=max(1, max_adapters))
            for name in base.text_names
        }
        self._rows = {name: RowWeights(bank) for name, bank in self.banks.items()}
        self._known: OrderedDict[_TextKey, Conditioning] = OrderedDict()
        self.num_hits = 0
        self.num_encoded = 0

    def close(self) -> None:
        """Restore the text encoders' own layers."""
        for bank in self.banks.values():
            bank.close()

    @torch.no_grad()
    def encode(
        self,
        prompt: str,
        adapters: Sequence[tuple[str, AdapterWeights, float]],
        *,
        is_negative: bool = False,
        windows: int = 1,
    ) -> Conditioning:
        """One encoded prompt, one row.

        Args:
            adapters: key, weights and factor of the adapters that have text layers.
            is_negative: whether to encode it as a negative prompt; see ``Base.encode_negative``.
            windows: of tokens in which it is read.
        """
        key = (tuple((key, factor) for key, _, factor in adapters), prompt, is_negative, windows)
        known = self._known.get(key)
        if known is not None:
            self.num_hits += 1
            self._known.move_to_end(key)
            return known
        self.num_encoded += 1
        encode = self._base.encode_negative if is_negative else self._base.encode_prompts
        with self._adapted(adapters):
            encoded = encode([prompt], [windows])
        self._known[key] = encoded
        while len(self._known) > self._max_prompts:
            self._known.popitem(last=False)
        return encoded

    @contextmanager
    def _adapted(self, adapters: Sequence[tuple[str, AdapterWeights, float]]) -> Iterator[None]:
        """The text encoders with these adapters."""
        with ExitStack() as active:
            for name, bank in self.banks.items() if adapters else ():
                for slot, (_, weights, _) in enumerate(adapters):
                    bank.set_slot(slot, weights.of_component(name))
                rows = self._rows[name]
                rows.assign([range(len(adapters))], [[factor for _, _, factor in adapters]])
                active.enter_context(rows.active())
            yield

    def forget(self, keys: Collection[str]) -> None:
        """Drop the prompts encoded with these adapters."""
        for known in list(self._known):
            if any(key in keys for key, _ in known[0]):
                del self._known[known]
