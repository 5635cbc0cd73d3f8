"""Requests to an engine, what their pictures are compared with, and rows without a model."""

import time
from typing import Any

import numpy as np
import torch

from farm.base.loading import load_base
from farm.schedulers import SCHEDULERS
from farm.serving.engine.row import Row, Size, Waiting
from farm.serving.engine.sizing.batch_size_search import BatchSizeCurve
from farm.serving.engine.sizing.capacity import Capacity
from farm.serving.request import GenerationRequest, Ticket

WAIT_S = 120


def ask(number, *adapters, **fields):
    fields = {"prompt": "a photo of a cat", "seed": number, "steps": 4, **fields}
    return GenerationRequest(
        id=str(number), adapters=tuple((ref, 1.0) for ref in adapters), **fields
    )


def generate(engine, *requests):
    tickets = [engine.submit(request) for request in requests]
    return [ticket.result(WAIT_S).pixels for ticket in tickets]


def assert_same(picture, other):
    difference = np.abs(picture.astype(int) - other.astype(int))
    assert difference.max() <= 2
    assert difference.mean() < 0.05


def wait_for(claim):
    deadline_s = time.monotonic() + WAIT_S
    while not claim():
        assert time.monotonic() < deadline_s, "it did not happen"
        time.sleep(0.002)


def various(refs):
    """Requests that differ in all that a request may differ in, of one size."""
    return [
        ask(
            i,
            *([] if i % 7 == 6 else [refs[i % len(refs)]]),
            prompt=f"a photo of a cat, {'in space ' * (i % 3)}",
            negative_prompt="blurry" if i % 4 == 1 else "",
            steps=3 + i % 5,
            guidance=[1.0, 3.0, 7.5][i % 3],
            scheduler=SCHEDULERS[i % len(SCHEDULERS)],
            tenant=f"tenant-{i % 2}",
        )
        for i in range(14)
    ]


def plain_diffusers(registry, request, tmp_path):
    """The picture that a plain pipeline generates with the adapters loaded."""
    base = load_base("tiny")
    pipeline = base.pipeline()
    names, weights = [], []
    for i, (ref, weight) in enumerate(request.adapters):
        registry.fetch(ref.key, tmp_path / ref.key)
        pipeline.load_lora_weights(tmp_path / ref.key, adapter_name=f"a{i}")
        names.append(f"a{i}")
        weights.append(weight)
    if names:
        pipeline.set_adapters(names, weights)
    pipeline.scheduler = base.scheduler(request.scheduler)
    picture = pipeline(
        request.prompt,
        negative_prompt=request.negative_prompt,
        num_inference_steps=request.steps,
        guidance_scale=request.guidance,
        width=request.width_px or base.resolution_px,
        height=request.height_px or base.resolution_px,
        generator=torch.Generator("cpu").manual_seed(request.seed),
        output_type="np",
    ).images[0]
    return (picture * 255).round().astype(np.uint8)


# -- without a model ------------------------------------------------------------------------------

SIZE: Size = (64, 64)
"""The base's own size."""


class _Facts:
    """What a capacity asks of a base."""

    resolution_px = SIZE[0]

    class device:  # noqa: N801
        type = "cpu"

    @staticmethod
    def needs_unprompted(guidance: float) -> bool:
        return guidance > 1


def capacity_of(rows: int, seconds_by_rows: dict[int, float] | None = None) -> Capacity:
    """Passes of this many rows; without a curve, their time is proportional to their rows."""
    facts: Any = _Facts
    curve = BatchSizeCurve(rows, seconds_by_rows or {rows: 1.0})
    return Capacity(facts, curve, memory_reserve=0.0)


def row_of(turn: int, tenant: str = "", *, guided: bool = False, size: Size = SIZE) -> Row:
    """A row without tensors."""
    request = GenerationRequest(
        id=str(turn), prompt="", guidance=5.0 if guided else 1.0, tenant=tenant
    )
    waiting = Waiting(Ticket(request), size, 1.0, 0.0, turn=turn)
    nothing: Any = None
    plain: Any = object() if guided else None
    return Row(waiting, nothing, nothing, plain, (), (), [])
