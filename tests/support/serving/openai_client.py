"""Images requested through OpenAI's own client."""

from __future__ import annotations

from typing import Any

import openai

FEW = {"num_inference_steps": 3, "seed": 5}


def generate(client: openai.OpenAI, model: str | None, prompt: str, **extra: Any) -> Any:
    named = {"model": model} if model is not None else {}
    return client.images.generate(prompt=prompt, extra_body={**FEW, **extra}, **named)
