"""What a lane costs: memory and speed, as formulas of a base's plain facts.

Owns both models and their constants, each with its source. The constants of the denoiser are those
of Stable Diffusion v1-5; ``MemoryFacts.counts`` replaces them for a base that was counted itself.
The planner chooses with them.
"""

from __future__ import annotations

import math

from farm.base.memory import MemoryFacts
from farm.training.plan.shape import LaneShape

__all__ = [
    "BESIDE_ROWS",
    "COMPILE_S",
    "COMPILING_PAYS",
    "CONTEXT_BYTES",
    "beside_bytes",
    "fixed_bytes",
    "cpu_rows_per_s",
    "lane_bytes",
    "row_flops",
    "rows_per_s",
    "slot_bytes",
]

# -- the memory model -----------------------------------------------------------------------------

CONTEXT_BYTES = 600 * 2**20
"""CUDA context, cuBLAS and cuDNN workspaces of one process: 400 to 600 MiB on A100 and H100."""
STATE_BYTES_PER_WEIGHT = 16
"""Per adapter weight in training: float32 weight, gradient and two Adam moments."""
ADAPTER_SHARE_PER_RANK = 2.32e-4
"""Adapter parameters per rank over denoiser parameters. Stable Diffusion v1-5, q, k, v and out of
all attentions: 199,296 over 859.5 M (counted)."""
SAVED_PER_CELL = 4.3
"""Values kept for the backward pass, per latent cell and square root of denoiser parameters, with
flash attention. Counted with saved-tensor hooks on the v1-5 denoiser: 256 MiB at 32×32 cells and
2,215 MiB at 96×96, bfloat16, one row."""
COUNTED_SAVED_FACTOR = 1.3
"""Saved values with real tensors over those counted on shapes: 256 MiB over 190 MiB at 32×32 cells
and 2,215 MiB over 1,708 MiB at 96×96, on the v1-5 denoiser."""
SAVED_PER_CELL_CHECKPOINTED = 0.62
"""The same with gradient checkpointing: 142 MiB at 64×64 cells."""
RECOMPUTED_SHARE = 0.25
"""Share of the unchecked values that exist at once while a checkpointed block is recomputed."""
TRANSIENT_FACTOR = 1.3
"""Memory in use relative to saved values: gradients in flight, workspaces, fragmentation."""
FORWARD_SHARE = 0.045
"""Memory of a row without gradients, in rows with them, uncheckpointed: 22 million values at 64×64
cells, of which the skip connections and the widest feed-forward layer are the largest (counted)."""
BESIDE_ROWS = 16
"""Rows of a pass that generates samples or the images of quality cards beside training."""
DECODER_VALUES_PER_PIXEL = 3 * 256
"""Values that the VAE keeps for each pixel of the image that it decodes; see ``latent_vae``."""
FILL = 0.92
"""Share of a lane's memory that the plan fills."""

# -- the speed model ------------------------------------------------------------------------------

FLOP_PER_CELL_PARAMETER = 0.228
"""Forward pass: 803 GFLOP for 859.5 M parameters on 64×64 cells (counted, attention included)."""
TRAINING_FACTOR = 2.13
"""LoRA forward and backward over forward alone: 1.714 TFLOP over 803 GFLOP (counted)."""
CHECKPOINT_FACTOR = 1.34
"""Recomputing the checkpointed blocks: 2.302 TFLOP over 1.714 (counted)."""
PEAK_SHARE = 0.40
"""Share of a GPU's dense half-precision peak that a large batch reaches; for smaller batches see
``HALF_FLOPS_PER_PEAK``."""
HALF_FLOPS_PER_PEAK = 0.008
"""Seconds of peak work at which a pass runs at half that share: small passes are bound by kernel
launches."""
CPU_FLOPS = 45e9
"""Useful float32 FLOP/s of one CPU core: the embedded base's 0.51 GFLOP rows at 94 a CPU second
with 16 slots (benchmarks/slots-*cpu-*.md)."""
CPU_HALF_ROWS = 4.5
"""Rows of a pass at which a core reaches half of its largest rate. Rows a second: 30 with 2 rows,
62 with 8, 81 with 16, 95 with 48 (benchmarks/slots-*cpu-*.md)."""
CPU_FULL_SHARE = 1.13
"""Factor on ``CPU_FLOPS`` in the limit of large passes."""
SMALL_BASE_THREADS = 1.3
"""Speed of a small base's passes on two cores over one core."""
COMPILE_S = 60.0
"""Seconds in which a lane on a GPU compiles its pass for the first time; a guess, because no GPU
was measured. A calibration has the measured value."""
COMPILING_PAYS = 5.0
"""A lane compiles if it trains this many times longer than compiling takes: the gain was counted at
a fifth to a quarter of a step."""
SHARING_LOSS = 0.03
"""Share of the time lost to context switches if several lanes share a GPU."""


def lane_bytes(facts: MemoryFacts, shape: LaneShape, slots: int, *, checkpointing: bool) -> int:
    """GPU memory of a lane with full slots, CUDA context included."""
    return fixed_bytes(facts) + slots * slot_bytes(facts, shape, checkpointing)


def fixed_bytes(facts: MemoryFacts) -> int:
    """GPU memory of a lane without slots: CUDA context and base."""
    return CONTEXT_BYTES + facts.weight_bytes


def beside_bytes(facts: MemoryFacts, shape: LaneShape) -> int:
    """GPU memory for generating images beside training: one pass, and one image in the VAE."""
    rows = BESIDE_ROWS * FORWARD_SHARE * _saved_values(facts, shape)
    pixels = DECODER_VALUES_PER_PIXEL * shape.resolution_px**2
    return round((rows + pixels) * facts.value_bytes)


def slot_bytes(facts: MemoryFacts, shape: LaneShape, checkpointing: bool) -> int:
    """GPU memory of one slot: adapter, optimizer state and saved activations."""
    if facts.counts is None:
        adapter = facts.denoiser_parameters * ADAPTER_SHARE_PER_RANK * shape.max_rank
    else:
        adapter = facts.counts.adapter_parameters(shape.target_modules, shape.max_rank)
    per_row = whole = _saved_values(facts, shape)
    if checkpointing:
        kept = whole * SAVED_PER_CELL_CHECKPOINTED / SAVED_PER_CELL
        per_row = kept + whole * RECOMPUTED_SHARE
    activations = per_row * facts.value_bytes * TRANSIENT_FACTOR * shape.rows
    return round(adapter * STATE_BYTES_PER_WEIGHT + activations)


def _saved_values(facts: MemoryFacts, shape: LaneShape) -> float:
    """Values that one row keeps for its backward pass, without checkpointing."""
    per_cell = SAVED_PER_CELL * math.sqrt(facts.denoiser_parameters)
    if facts.counts is not None:
        per_cell = COUNTED_SAVED_FACTOR * facts.counts.saved_per_cell
    return per_cell * cells(facts, shape)


def cells(facts: MemoryFacts, shape: LaneShape) -> int:
    """Latent cells of one row."""
    return (shape.resolution_px // facts.latent_factor) ** 2


def row_flops(facts: MemoryFacts, shape: LaneShape, checkpointing: bool) -> float:
    """FLOP of one row's forward and backward pass."""
    forward = FLOP_PER_CELL_PARAMETER * facts.denoiser_parameters * cells(facts, shape)
    if facts.counts is not None:
        forward = facts.counts.forward_flops(cells(facts, shape))
    return forward * (TRAINING_FACTOR * (CHECKPOINT_FACTOR if checkpointing else 1.0))


def rows_per_s(flops: float, rows: int, peak_flops: float) -> float:
    """Training rows a second of one busy GPU with this many rows in a pass."""
    work = flops * rows
    half = HALF_FLOPS_PER_PEAK * peak_flops
    return PEAK_SHARE * peak_flops * work / (work + half) / flops


def cpu_rows_per_s(flops: float, rows: int, core_flops: float) -> float:
    """Training rows a second of a small base's lane on one core, with this many rows in a pass."""
    return core_flops * CPU_FULL_SHARE * rows / (rows + CPU_HALF_ROWS) / flops
