"""The cost of slots on the real Stable Diffusion v1-5 shape, counted on any machine.

    python benchmarks/training/sd15_count.py

Runs the wrapped UNet forward and backward on meta tensors (shapes without data) under torch's
FlopCounterMode, for one slot and for many: the cost per row must not depend on S. The page
``sd15-count-<date>.md`` also projects times for a given utilisation; ``sd15_gpu.py`` measures them
on a GPU.

Legend: S slots, R rows.
"""

from __future__ import annotations

import argparse
import datetime
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode, addmm_flop, baddbmm_flop

from farm.adapters.bank.bank import Bank
from farm.base.interface import Base
from farm.base.random_weights import BUILDS

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
ROWS_PER_SLOT, STEPS = 2, 800
IN_PLACE = {
    torch.ops.aten.addmm_: addmm_flop.__wrapped__,
    torch.ops.aten.baddbmm_: baddbmm_flop.__wrapped__,
}
"""Products that torch counts only where they are not in place."""


@dataclass(frozen=True)
class Count:
    """FLOP of one row, in units of 10^12."""

    slots: int
    rank: int
    checkpointing: bool
    forward: float
    total: float
    slot_parameters: int


def meta_unet() -> Any:
    """The real shape on the meta device, frozen."""
    with torch.device("meta"):
        return UNet2DConditionModel(**BUILDS["sd15"].unet).requires_grad_(False)


def count(unet: Any, slots: int, rank: int, *, checkpointing: bool = False) -> Count:
    """Count one training pass of S slots, two rows each."""
    meta = torch.device("meta")
    base = types.SimpleNamespace(
        components={"unet": unet}, denoiser_name="unet", device=meta, dtype=torch.float32
    )
    rows = slots * ROWS_PER_SLOT
    latents_RCHW = torch.empty(rows, 4, 64, 64, device=meta)
    timesteps_R = torch.empty(rows, dtype=torch.int64, device=meta)
    hidden_RTD = torch.empty(rows, 77, 768, device=meta)
    bank = Bank(
        cast(Base, base),
        num_slots=slots,
        max_rank=rank,
        target_modules=ATTENTION,
        trainable=True,
    )
    if checkpointing:
        unet.enable_gradient_checkpointing()
    counter = FlopCounterMode(display=False, custom_mapping=IN_PLACE)
    with counter as flop, bank.route_grouped(ROWS_PER_SLOT):
        output = unet(latents_RCHW, timesteps_R, encoder_hidden_states=hidden_RTD)[0]
        forward = flop.get_total_flops()
        bank.backward(output.square().sum())
    total = flop.get_total_flops()
    unet.disable_gradient_checkpointing()
    bank.close()
    scale = rows * 1e12
    return Count(slots, rank, checkpointing, forward / scale, total / scale, bank.num_parameters)


def report(counts: list[Count]) -> str:
    """The dated page."""
    lines = [
        f"# Stable Diffusion v1-5 shape, 512 px: counted, not timed, {today()}",
        "",
        "Nothing on this page is a measured time. The counts are torch's FlopCounterMode over the "
        "bank's own forward and backward pass on meta tensors. "
        "`python benchmarks/training/sd15_gpu.py` measures times, memory and "
        "utilisation on a GPU; without one, a test runs its code on a CPU at a tiny size.",
        "",
        "| S | rank | checkpointing | forward TFLOP/row | with backward | parameters/slot |",
        "|---|---|---|---|---|---|",
        *(
            f"| {c.slots} | {c.rank} | {'yes' if c.checkpointing else 'no'} | {c.forward:.3f} "
            f"| {c.total:.3f} | {c.slot_parameters:,} |"
            for c in counts
        ),
        "",
    ]
    plain = next(c for c in counts if not c.checkpointing)
    subject = plain.total * ROWS_PER_SLOT * STEPS
    state = plain.slot_parameters * 4
    lines += [
        f"A subject of {STEPS} steps with prior preservation is {subject / 1000:.2f} PFLOP. "
        "Projected times, if a card runs at this fraction of its dense bf16 peak:",
        "",
        "| card | peak TFLOP/s | 30 % | 40 % | 50 % |",
        "|---|---|---|---|---|",
        *(
            f"| {card} | {peak} | {subject / peak / 0.3:.1f} s | {subject / peak / 0.4:.1f} s "
            f"| {subject / peak / 0.5:.1f} s |"
            for card, peak in (("H100, H200", 989), ("A100", 312))
        ),
        "",
        "A slot's weights in float32, their bfloat16 copy and gradient, and Adam's two moments "
        f"are {(3 * state + state) / 2**20:.1f} MiB at rank {plain.rank}; activations are extra "
        "and are measured by the GPU benchmark.",
    ]
    return "\n".join(lines) + "\n"


def today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", default=str(Path(__file__).parents[1]))
    arguments = parser.parse_args(argv)
    unet = meta_unet()
    counts = [
        count(unet, 1, 4),
        count(unet, 32, 4),
        count(unet, 32, 16),
        count(unet, 32, 4, checkpointing=True),
    ]
    path = Path(arguments.out) / f"sd15-count-{today()}.md"
    path.write_text(report(counts))
    print(path)


if __name__ == "__main__":
    main()
