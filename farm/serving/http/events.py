"""Server-sent events in the form that OpenAI's clients read.

Owns the wire format; knows nothing of engines. ``image_generation.progress``, which OpenAI does not
have, is sent only to callers who request it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

__all__ = ["DONE", "KEEP_ALIVE", "completed", "encode_event", "failed", "partial", "progress"]

KEEP_ALIVE = b": keep-alive\n\n"
"""A comment: clients skip it, and proxies see that the connection is alive."""
DONE = b"data: [DONE]\n\n"


def encode_event(event: Mapping[str, Any]) -> bytes:
    """One event on the wire; its name is the ``type`` inside."""
    name = event.get("type", "error")
    return f"event: {name}\ndata: {json.dumps(event)}\n\n".encode()


def partial(
    shared: Mapping[str, Any], b64_json: str, index: int, step: int, num_steps: int, picture: int
) -> dict[str, Any]:
    """An image in progress, from the denoiser's current estimate."""
    return {
        "type": "image_generation.partial_image",
        **shared,
        "b64_json": b64_json,
        "partial_image_index": index,
        "step": step,
        "num_steps": num_steps,
        "picture_index": picture,
    }


def progress(
    created_at: int, stage: str, step: int, num_steps: int, picture: int
) -> dict[str, Any]:
    """The progress of an image; an extension of OpenAI's events."""
    return {
        "type": "image_generation.progress",
        "created_at": created_at,
        "stage": stage,
        "step": step,
        "num_steps": num_steps,
        "picture_index": picture,
    }


def completed(shared: Mapping[str, Any], item: Mapping[str, Any], picture: int) -> dict[str, Any]:
    """A finished image: the item of a response without streaming, and its usage."""
    return {
        "type": "image_generation.completed",
        **shared,
        **item,
        "picture_index": picture,
    }


def failed(error: Mapping[str, Any]) -> dict[str, Any]:
    """The error that ends a stream; OpenAI's clients raise it as an exception."""
    return {"type": "error", **error}
