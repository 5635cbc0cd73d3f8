"""Equality: the device against the CPU, bfloat16 against float32, fast passes against eager ones.

The small base is sampled on the CPU, so that every device and dtype holds the same weights. Each
result gives the largest difference, relative to the largest value compared, and its bound.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from farm.adapters.weights import AdapterWeights
from farm.base.interface import Base, Conditioning
from farm.base.loading import load_base
from gpu.results import Result, Results
from gpu.setting import Setting
from gpu.suite import Case
from gpu.training import SlotCase, open_trainer

__all__ = ["cases"]

STEPS = 3
ADAPTERS_BOUND = 2e-3
"""Of adapters after a few steps in float32; Adam's first steps amplify differences of gradients."""
HALF_BOUND = 0.03


def cases(setting: Setting) -> list[Case]:
    return [Case("equality", _equality, 30)]


def _equality(setting: Setting, results: Results) -> Iterator[Result]:
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    try:
        here = load_base("tiny", device=setting.device, dtype=torch.float32)
        expected = _trained(SlotCase(3), setting, load_base("tiny"))
        eager = _trained(SlotCase(3), setting, here)
        yield _compared("device against CPU, float32", eager, expected, ADAPTERS_BOUND)
        fast = (
            ("captured against eager", SlotCase(3, graph=True)),
            *[("compiled against eager", SlotCase(3, compile=True))] * setting.on_gpu,
            ("Triton kernel against eager", SlotCase(3, kernel="triton")),
        )
        for what, case in fast:
            found = _trained(case, setting, here)
            yield _compared(what, found, eager, ADAPTERS_BOUND)
        half = load_base("tiny", device=setting.device, dtype=torch.bfloat16)
        yield _difference("bfloat16 pass against float32", _pass(half), _pass(here), HALF_BOUND)
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def _trained(case: SlotCase, setting: Setting, base: Base) -> list[AdapterWeights]:
    trainer = open_trainer(case, setting, base)
    try:
        for _ in range(STEPS):
            trainer.step()
        return [trainer.weights(slot) for slot in range(case.slots)]
    finally:
        trainer.close()


def _compared(
    what: str, found: list[AdapterWeights], expected: list[AdapterWeights], bound: float
) -> Result:
    return _difference(what, _flat(found), _flat(expected), bound)


def _flat(adapters: list[AdapterWeights]) -> Tensor:
    layers = [layer for one in adapters for _, layer in sorted(one.layers.items())]
    return torch.cat([part.flatten() for one in layers for part in (one.down, one.up)])


@torch.no_grad()
def _pass(base: Base) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    shape = base.latent_shape(base.resolution_px, base.resolution_px)
    latents_RCHW = torch.randn(4, *shape, generator=generator).to(base.device, base.dtype)
    prompts: Conditioning = base.encode_prompts(["a photo of sks cat"]).repeat(4)
    timesteps_R = torch.tensor([10, 300, 600, 950], device=base.device)
    return base.denoise(latents_RCHW, timesteps_R, prompts).float().cpu()


def _difference(what: str, found: Tensor, expected: Tensor, bound: float) -> Result:
    largest = float((found - expected).abs().max() / expected.abs().max())
    return {"what": what, "difference": largest, "bound": bound, "equal": largest <= bound}
