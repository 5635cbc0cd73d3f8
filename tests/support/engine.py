"""Requests to an engine, and what their pictures are compared with."""

import time

import numpy as np
import torch

from farm.base.loading import load_base
from farm.schedulers import SCHEDULERS
from farm.serving.request import GenerationRequest

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
