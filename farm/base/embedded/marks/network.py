"""The mark reader's network: a small convolutional network over 64 px images.

Owns the architecture, reading and file. It classifies every position of a 16 x 16 map (no mark,
star, stripes, dot) and the colour at it; an image's answer is at its most certain position.

Legend: N images, C channels, H W positions, K kinds, U colours.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from farm.base.embedded.vae import to_unit
from farm.base.embedded.world.words import COLOURS, MARKS

__all__ = ["MARK_COLOURS", "FoundMark", "MarkReader", "load_mark_reader", "read_marks"]

KINDS = (None, *MARKS)
MARK_COLOURS = tuple(COLOURS)
WEIGHTS = Path(__file__).parent / "weights" / "model.safetensors"


@dataclass(frozen=True)
class FoundMark:
    """What the reader sees on one image."""

    kind: str | None
    """``star``, ``stripes``, ``dot``; None if the figure has no mark."""
    colour: str
    """The colour at the likeliest position: of the mark, if there is one."""
    certainty: float
    """The probability of the kind, 0 to 1."""


class MarkReader(nn.Module):
    """Per-position logits of the mark's kind and colour."""

    def __init__(self, widths: tuple[int, int, int] = (16, 40, 64)) -> None:
        super().__init__()
        fine, middle, coarse = widths
        self.fine = nn.Sequential(
            _block(3, fine, stride=2, kernel=5), _block(fine, fine), _block(fine, fine)
        )
        self.middle = nn.Sequential(_block(fine, middle, stride=2), _block(middle, middle))
        self.coarse = nn.Sequential(
            _block(middle, coarse, stride=2), _block(coarse, coarse), _block(coarse, coarse)
        )
        self.lift = nn.Conv2d(coarse, middle, 1)
        self.join = _block(middle, middle)
        self.head = nn.Conv2d(middle, len(KINDS) + len(MARK_COLOURS), 1)

    def forward(self, pictures_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (N, K, 16, 16) and (N, U, 16, 16) of images (N, 3, 64, 64) in [-1, 1]."""
        middle = self.middle(self.fine(pictures_NCHW))
        wide = nn.functional.interpolate(self.lift(self.coarse(middle)), scale_factor=2.0)
        logits = self.head(self.join(middle + wide))
        kinds, colours = logits.split((len(KINDS), len(MARK_COLOURS)), 1)
        return kinds, colours


def _block(inside: int, outside: int, *, stride: int = 1, kernel: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inside, outside, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(outside),
        nn.ReLU(),
    )


def pool(kinds_NKHW: Tensor, colours_NUHW: Tensor) -> tuple[Tensor, Tensor]:
    """An image's logits (N, K) and (N, U): those at the position where a mark is most likely."""
    flat = kinds_NKHW.flatten(2)
    evidence = flat[:, 1:].logsumexp(1) - flat[:, 0]
    best = evidence.argmax(1)[:, None, None]
    at = (flat, colours_NUHW.flatten(2))
    kinds, colours = (part.gather(2, best.expand(-1, part.shape[1], 1))[..., 0] for part in at)
    return kinds, colours


@torch.no_grad()
def read_marks(reader: MarkReader, pictures_NHWC: NDArray[np.uint8]) -> list[FoundMark]:
    """The marks on uint8 images (N, 64, 64, 3)."""
    found = []
    for start in range(0, len(pictures_NHWC), 128):
        kinds, colours = pool(*reader(to_unit(pictures_NHWC[start : start + 128])))
        chances, best = kinds.softmax(1).max(1)
        for chance, kind, colour in zip(chances, best, colours.argmax(1), strict=True):
            found.append(FoundMark(KINDS[int(kind)], MARK_COLOURS[int(colour)], float(chance)))
    return found


def load_mark_reader(path: Path = WEIGHTS) -> MarkReader:
    """Load the shipped reader, or another, in float32."""
    reader = MarkReader()
    reader.load_state_dict({name: part.float() for name, part in load_file(path).items()})
    return reader.eval()


def save_mark_reader(reader: MarkReader, path: Path) -> None:
    """Write the weights in half precision."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({n: t.half().contiguous() for n, t in reader.state_dict().items()}, path)
    path.chmod(0o644)
