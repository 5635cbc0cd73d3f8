"""The model card: a README that the Hub, and people, can read.

Owns the text and its YAML head. The pictures lie beside it, in ``samples/``.
"""

from __future__ import annotations

from collections.abc import Sequence

from huggingface_hub import ModelCardData

from farm.adapters.files import DIFFUSERS_FILE
from farm.adapters.record import AdapterRecord

__all__ = ["model_card"]

TAGS = ["text-to-image", "diffusers", "lora", "dreambooth", "template:sd-lora", "stable-diffusion"]


def model_card(
    record: AdapterRecord, samples: Sequence[tuple[str, str]], kohya_name: str | None
) -> str:
    """The card of one adapter.

    Args:
        samples: (path beside the card, prompt) of each picture.
        kohya_name: the kohya form's file, where there is one.
    """
    trigger = f"{record.identifier} {record.class_noun}"
    data = ModelCardData(
        base_model=record.base_id if record.base_id.count("/") == 1 else None,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=TAGS,
        instance_prompt=record.instance_prompt,
        widget=[{"text": prompt or trigger, "output": {"url": path}} for path, prompt in samples]
        or None,
    )
    parts = [
        f"---\n{data.to_yaml()}\n---\n",
        f"# {record.name}\n",
        f"A LoRA adapter that knows one particular {record.class_noun}, trained by DreamBooth"
        + (" with class-specific prior preservation" if record.recipe.uses_prior else "")
        + f" on `{record.base_id}`.\n",
        "<Gallery />\n" if samples else "",
        *(f"![{prompt or trigger}]({path})" for path, prompt in samples),
        f"\n## Trigger words\n\nWrite `{trigger}` in the prompt, as in "
        f"`{record.instance_prompt}`.\n",
        _usage(record, kohya_name),
        _training(record),
        _quality(record),
        _provenance(record),
    ]
    return "\n".join(part for part in parts if part)


def _usage(record: AdapterRecord, kohya_name: str | None) -> str:
    lines = [
        "## Use it\n",
        "```python",
        "from diffusers import StableDiffusionPipeline",
        "",
        f'pipeline = StableDiffusionPipeline.from_pretrained("{record.base_id}")',
        f'pipeline.load_lora_weights("this-folder", weight_name="{DIFFUSERS_FILE}")',
        f'picture = pipeline("{record.instance_prompt}").images[0]',
        "```\n",
    ]
    if kohya_name:
        lines.append(f"For A1111, Forge and ComfyUI put `{kohya_name}` into the LoRA folder.\n")
    return "\n".join(lines)


def _training(record: AdapterRecord) -> str:
    recipe = record.recipe
    alpha = recipe.alpha if recipe.alpha is not None else recipe.rank
    ended = "" if record.stopped_because == "steps" else f" ({record.stopped_because})"
    rows = [
        ("steps", f"{record.steps_trained} of {recipe.steps}{ended}"),
        ("rank, alpha", f"{recipe.rank}, {alpha:g}"),
        ("learning rate", f"{recipe.learning_rate:g}, {recipe.learning_rate_schedule}"),
        ("photos", str(len(record.photo_digests))),
        (
            "prior preservation",
            f"weight {recipe.prior_weight:g}, {recipe.num_prior_images} class images of "
            f"`{record.class_prompt}`"
            if recipe.uses_prior
            else "none",
        ),
        ("seed", str(recipe.seed)),
        ("time", f"{record.gpu_seconds:.1f} s of one device"),
    ]
    return _table("## Training", rows) + "\nThe whole recipe is in `adapter.json`.\n"


def _quality(record: AdapterRecord) -> str:
    card = record.quality or {}
    rows = [
        (name, f"{value:.3f}")
        for name, value in card.items()
        if isinstance(value, float | int) and not isinstance(value, bool)
    ]
    return _table("## Quality", rows) if rows else ""


def _provenance(record: AdapterRecord) -> str:
    return (
        f"## Provenance\n\nJob `{record.job_key}`, base fingerprint "
        f"`{record.base_fingerprint[:16]}…`, made {record.created} by dreambooth-farm "
        f"{record.farm_version}. The license of the base model and the rights in the photos "
        "apply to this adapter too.\n"
    )


def _table(title: str, rows: Sequence[tuple[str, str]]) -> str:
    lines = [f"{title}\n", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]
    return "\n".join(lines) + "\n"
