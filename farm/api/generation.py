"""The arguments of ``Adapter.generate``, held against the endpoint's schema.

Owns the names that differ in Python, and the errors. The limits are those of the endpoint's API.
"""

from __future__ import annotations

from pydantic import ValidationError

from farm.errors import UserError
from farm.intake.prompts.tags import fill_tags, near_miss
from farm.serving.http.errors import describe
from farm.serving.http.schemas import GenerateRequest

__all__ = ["check_arguments", "filled"]

PYTHON_NAMES = {"num_inference_steps": "steps", "guidance_scale": "guidance"}
"""The arguments of fields whose names differ."""


def check_arguments(
    *,
    prompt: object,
    seed: object,
    steps: object,
    guidance: object,
    negative_prompt: object,
    scheduler: object,
    long_prompts: object,
    size_px: object,
) -> None:
    """Refuse values of another type or out of range.

    Raises:
        UserError: names each of them.
    """
    if size_px is not None and not _is_size(size_px):
        raise UserError(
            f"size_px is {size_px!r}", "give width and height in pixels, such as (512, 512)"
        )
    if isinstance(seed, int) and seed < 0:
        raise UserError(f"seed is {seed}", "give 0 or more")
    fields = {
        "prompt": prompt,
        "seed": seed,
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "negative_prompt": negative_prompt,
        "scheduler": scheduler,
        "long_prompts": long_prompts,
    }
    optional = ("long_prompts",)
    for name, value in fields.items():
        if value is None and name not in optional:  # the endpoint takes null for its defaults
            remedy = "give a prompt" if name == "prompt" else "leave it out, or give one"
            raise UserError(f"{PYTHON_NAMES.get(name, name)} is None", remedy)
    try:
        GenerateRequest.model_validate(fields)
    except ValidationError as error:
        named = [
            {**one, "loc": ("", *(PYTHON_NAMES.get(str(part), part) for part in one["loc"]))}
            for one in error.errors(include_url=False)
        ]
        raise UserError(describe(named)[0], "see help(farm.Adapter.generate)") from None


def filled(prompt: str, name: str, identifier: str) -> str:
    """The prompt with the identifier of its only adapter.

    Raises:
        UserError: if it asks for another adapter's subject.
    """
    if (mistyped := near_miss(prompt, {name: identifier})) is not None:
        raise UserError(
            f"prompt: {mistyped[0]} is not how a subject is named",
            f"write {mistyped[1]}; a weight is an argument of its own",
        )
    text, unknown = fill_tags(prompt, {name: identifier})
    if unknown is not None:
        raise UserError(
            f"prompt: {unknown} stands for another adapter, and {name} is the only one here",
            f"write [V] or [V:{name}]; the endpoint combines several adapters",
        )
    return text


def _is_size(value: object) -> bool:
    return (
        isinstance(value, tuple | list)
        and len(value) == 2
        and all(isinstance(side, int) and not isinstance(side, bool) for side in value)
    )
