"""What conditions the denoiser: token ids, encoded prompts, and the frames of training crops.

Owns these values and their row operations. They are the same for all families: a family names its
tensors, and trainer and engine move them by rows without looking inside.

Legend: R rows, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from farm.base.device.transfer import sent

__all__ = ["ABSENT", "MASK", "Conditioning", "TokenIds", "whole_frames"]

MASK = "mask"
"""The entry of ``Conditioning.extra`` that marks real tokens, bool [R, T]. A family without it has
prompts of one fixed length, unless they are read in windows."""
ABSENT = -1
"""The token id where a prompt has fewer windows of tokens than the longest of its rows."""

Rows = slice | Tensor | list[int]


@dataclass(frozen=True)
class TokenIds:
    """Tokenised prompts: the tensors that the text encoders read, each [R, T] with rows first.

    Token ids are under the name of their encoder; a mask is under ``<encoder>.mask``.
    """

    tensors: Mapping[str, Tensor]

    def __len__(self) -> int:
        return next(iter(self.tensors.values())).shape[0]

    def __getitem__(self, rows: Rows) -> TokenIds:
        """The chosen rows."""
        return self._each(lambda tensor: tensor[rows])

    def repeat(self, count: int) -> TokenIds:
        """Each row repeated ``count`` times, repeats adjacent."""
        return self._each(lambda tensor: tensor.repeat_interleave(count, 0))

    def to(self, *args: Any, **kwargs: Any) -> TokenIds:
        """Every tensor moved, as ``Tensor.to`` does."""
        return self._each(lambda tensor: tensor.to(*args, **kwargs))

    def sent(self, device: torch.device) -> TokenIds:
        """Copied to a device without waiting."""
        return self._each(lambda tensor: sent(tensor, device))

    @property
    def num_tokens(self) -> int:
        """T of the longest tensor, padding included."""
        return max(tensor.shape[1] for tensor in self.tensors.values())

    def as_long_as(self, other: TokenIds) -> TokenIds:
        """Each tensor padded with ``ABSENT`` to at least the T of the other's; self if none is."""
        missing = {
            name: max(0, other.tensors[name].shape[1] - tensor.shape[1])
            for name, tensor in self.tensors.items()
        }
        if not any(missing.values()):
            return self
        return TokenIds(
            {
                name: functional.pad(tensor, (0, missing[name]), value=ABSENT)
                for name, tensor in self.tensors.items()
            }
        )

    def write(self, start: int, source: TokenIds) -> None:
        """Overwrite rows from ``start`` in place; the source must not be longer."""
        source = source.as_long_as(self)
        for name, tensor in self.tensors.items():
            tensor[start : start + len(source)].copy_(source.tensors[name], non_blocking=True)

    def _each(self, change: Callable[[Tensor], Tensor]) -> TokenIds:
        return TokenIds({name: change(tensor) for name, tensor in self.tensors.items()})

    @staticmethod
    def concatenate(parts: Sequence[TokenIds]) -> TokenIds:
        """All rows of all parts in order, padded to one length; all parts are of one base."""
        longest = max(parts, key=lambda part: part.num_tokens)
        parts = [part.as_long_as(longest) for part in parts]
        return TokenIds(
            {name: torch.cat([part.tensors[name] for part in parts]) for name in parts[0].tensors}
        )


@dataclass(frozen=True)
class Conditioning:
    """Encoded prompts that condition the denoiser, one row per prompt.

    ``hidden_RTD`` holds the text encoder's token states. Families that need more (pooled text,
    sizes, a guidance scale) put it in ``extra``, each tensor with rows first. Prompts of different
    lengths have a ``MASK`` there, and are padded where rows are put together.
    """

    hidden_RTD: Tensor
    extra: Mapping[str, Tensor]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All of its tensors."""
        return self.hidden_RTD, *self.extra.values()

    def __len__(self) -> int:
        return self.hidden_RTD.shape[0]

    def __getitem__(self, rows: Rows) -> Conditioning:
        """The chosen rows."""
        return self._each(lambda tensor: tensor[rows])

    def repeat(self, count: int) -> Conditioning:
        """Each row repeated ``count`` times, repeats adjacent."""
        return self._each(lambda tensor: tensor.repeat_interleave(count, 0))

    def to(self, *args: Any, **kwargs: Any) -> Conditioning:
        """Every tensor moved, as ``Tensor.to`` does; masks and sizes keep their dtype."""

        def moved(tensor: Tensor) -> Tensor:
            to = tensor.to(*args, **kwargs)
            return to if tensor.is_floating_point() else tensor.to(to.device)

        return self._each(moved)

    def with_extra(self, **more: Tensor) -> Conditioning:
        """The same rows with more entries."""
        return Conditioning(self.hidden_RTD, {**self.extra, **more})

    @property
    def num_tokens(self) -> int:
        """T, padding included."""
        return self.hidden_RTD.shape[1]

    def masked(self) -> Conditioning:
        """The same prompts with a ``MASK``; all tokens are real where there was none."""
        if MASK in self.extra:
            return self
        shape, device = self.hidden_RTD.shape[:2], self.hidden_RTD.device
        return self.with_extra(**{MASK: torch.ones(shape, dtype=torch.bool, device=device)})

    def padded(self, num_tokens: int) -> Conditioning:
        """The same prompts with T padded to ``num_tokens``, zeros masked out.

        Raises:
            ValueError: if these prompts have no mask, so that padding would be read as text.
        """
        missing = num_tokens - self.num_tokens
        if not missing:
            return self
        if MASK not in self.extra or missing < 0:
            raise ValueError(f"prompts of {self.num_tokens} tokens cannot become {num_tokens}")
        mask_RT = functional.pad(self.extra[MASK], (0, missing))
        hidden_RTD = functional.pad(self.hidden_RTD, (0, 0, 0, missing))
        return Conditioning(hidden_RTD, {**self.extra, MASK: mask_RT})

    def _each(self, change: Callable[[Tensor], Tensor]) -> Conditioning:
        return Conditioning(
            change(self.hidden_RTD), {name: change(value) for name, value in self.extra.items()}
        )

    @staticmethod
    def concatenate(parts: Sequence[Conditioning]) -> Conditioning:
        """All rows of all parts in order, padded to one length; the parts must come from one
        family."""
        if any(MASK in part.extra for part in parts):
            parts = [part.masked() for part in parts]
        longest = max(part.num_tokens for part in parts)
        parts = [part.padded(longest) for part in parts]
        return Conditioning(
            torch.cat([part.hidden_RTD for part in parts]),
            {name: torch.cat([part.extra[name] for part in parts]) for name in parts[0].extra},
        )


def whole_frames(rows: int, width_px: int, height_px: int) -> Tensor:
    """The frames of uncropped images, int64 [R, 6].

    A frame states how an image was cropped: height and width of the original, top and left edge of
    the crop in the original scaled to the crop's resolution, height and width of the crop.
    """
    return torch.tensor([[height_px, width_px, 0, 0, height_px, width_px]]).repeat(rows, 1)
