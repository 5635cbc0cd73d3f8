"""Facts about a base for the planner: its size, and counts of its denoiser's passes and layers.

Plain values. Imports no torch, so that a plan needs none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from farm.recipe import PACKED_BYTES, Quantization

__all__ = ["DenoiserCounts", "MemoryFacts"]


@dataclass(frozen=True)
class MemoryFacts:
    """Facts about a base that the planner needs; byte counts are for the dtype it is loaded in."""

    num_parameters: int
    denoiser_parameters: int
    weight_bytes: int
    """Size of all resident parts: text encoder, VAE and denoiser."""
    latent_channels: int
    latent_factor: int
    """Pixels per latent cell along one side; 8 for Stable Diffusion."""
    tokens: int
    """Length of a prompt in tokens, padding included."""
    counts: DenoiserCounts | None = None
    """Of the base's own denoiser, if they were asked for; see ``Base.denoiser_counts``."""
    full_precision_bytes: int = 0
    """Bytes of the parts that stay in float32 where the base is in half precision."""
    linear_parameters: int = 0
    """Weights of the denoiser's linear layers, which quantisation packs."""
    activation_bytes: int | None = None
    """Bytes of one value in passes; None where the weights have the same."""

    def halved(self) -> MemoryFacts:
        """The facts for the same base in half precision, as it is loaded on GPUs."""
        in_half = 2 * self.num_parameters + self.full_precision_bytes // 2
        return replace(self, weight_bytes=in_half)

    @property
    def value_bytes(self) -> int:
        """Bytes of one value in passes."""
        return self.activation_bytes or max(1, round(self.weight_bytes / self.num_parameters))

    def quantized(self, kind: Quantization | None) -> MemoryFacts:
        """The facts with the denoiser's linear layers in few bits."""
        if kind is None:
            return self
        packed = round(self.linear_parameters * PACKED_BYTES[kind])
        saved = self.linear_parameters * self.value_bytes - packed
        return replace(
            self, weight_bytes=self.weight_bytes - saved, activation_bytes=self.value_bytes
        )


@dataclass(frozen=True)
class DenoiserCounts:
    """Counts of a denoiser's forward pass and layers, made on tensors without storage."""

    flops_per_cell: float
    """FLOP of one row that grow with its latent cells."""
    flops_per_cell_squared: float
    """FLOP of one row that grow with the square of its cells: attention."""
    flops_per_row: float
    """FLOP of one row at any size: the text tokens."""
    saved_per_cell: float
    """Values kept for the backward pass, per latent cell, without gradient checkpointing."""
    layer_widths: Mapping[str, int]
    """Inputs plus outputs of each layer that can have an adapter, by its path."""

    def forward_flops(self, cells: int) -> float:
        """FLOP of one row's forward pass."""
        return self.flops_per_row + cells * (
            self.flops_per_cell + cells * self.flops_per_cell_squared
        )

    def adapter_parameters(self, endings: Sequence[str], rank: int) -> int:
        """Parameters of one adapter on the layers with these endings."""
        return rank * sum(
            width
            for path, width in self.layer_widths.items()
            if any(path == end or path.endswith(f".{end}") for end in endings)
        )
