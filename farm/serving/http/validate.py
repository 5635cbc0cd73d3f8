"""Validation of a generation request: adapters, prompt, seeds and cost.

Owns the checks, cheapest first, so that nothing is looked up for a request that cannot be served,
and nothing is generated for one that is not allowed.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from starlette.requests import Request

from farm.errors import RequestRefused
from farm.intake.prompts.foreign_syntax import adapter_tags, emphasis
from farm.intake.prompts.tags import TAG, fill_tags, near_miss
from farm.intake.subject import names_identifier
from farm.serving.access.api_keys import Tenant
from farm.serving.access.catalog import AdapterFacts
from farm.serving.access.limits import Limits
from farm.serving.client import ServedBase
from farm.serving.http.image_metadata import OutputFormat
from farm.serving.http.schemas import ANY_SEED, GenerateRequest
from farm.serving.http.services import Services
from farm.serving.request import MAX_SEED, AdapterRef, GenerationRequest

__all__ = ["Order", "check_adapters", "validate_request"]

DEFAULT_GUIDANCE = 5.0


@dataclass(frozen=True)
class Order:
    """A validated request: what to generate, one entry per image."""

    asked: GenerateRequest
    tenant: Tenant
    pictures: tuple[GenerationRequest, ...]
    width_px: int
    height_px: int
    link_root: str
    notes: tuple[str, ...] = ()
    """What the caller should know about the prompt, the same for every image."""

    @property
    def output_format(self) -> OutputFormat:
        """Format of the image files."""
        return self.asked.output_format or "png"

    def shared(self) -> dict[str, Any]:
        """Fields of the request that every response and event repeats, as OpenAI names them."""
        quality = {"standard": "medium", "hd": "high"}.get(
            self.asked.quality or "auto", self.asked.quality or "auto"
        )
        return {
            "created_at": int(time.time()),
            "size": f"{self.width_px}x{self.height_px}",
            "quality": quality,
            "background": "opaque",
            "output_format": self.output_format,
        }

    def usage(self, base: ServedBase, num_pictures: int) -> dict[str, Any]:
        """Usage in latent cells, where OpenAI counts tokens."""
        cells = (self.width_px // base.side_multiple_px) * (self.height_px // base.side_multiple_px)
        details = {"text_tokens": 0, "image_tokens": 0}
        return {
            "input_tokens": 0,
            "input_tokens_details": details,
            "output_tokens": cells * num_pictures,
            "total_tokens": cells * num_pictures,
        }


async def validate_request(
    services: Services,
    tenant: Tenant,
    asked: GenerateRequest,
    request: Request,
    seed: int | None = None,
) -> tuple[Order, ServedBase]:
    """Check a request against the limits, the key's rate and the catalog; nothing is generated.

    Args:
        seed: the first seed if the request names none; None chooses a random one.

    Raises:
        ServingError: describes what is wrong, or when to retry.
    """
    limits = services.limits
    base = await services.client.facts()
    width_px, height_px = asked.side_px(base.resolution_px)
    num_pictures = asked.n or 1
    _check_limits(limits, asked, base, (width_px, height_px), num_pictures)
    # counted before names are looked up, so that guessing names uses up the caller's rate
    per_minute = tenant.pictures_per_minute or limits.pictures_per_minute
    services.rates.take(tenant.key_id, num_pictures, per_minute)
    used = await _find_adapters(services, tenant, asked, base)
    prompt = _fill(asked.prompt, [facts for facts, _, _ in used])
    first_seed = _first_seed(asked.seed, seed, num_pictures)
    template = GenerationRequest(
        id="",
        prompt=prompt,
        negative_prompt=asked.negative_prompt or "",
        steps=asked.steps,
        guidance=asked.guidance_scale if asked.guidance_scale is not None else DEFAULT_GUIDANCE,
        scheduler=asked.scheduler or "base",
        long_prompts=asked.long_prompts or (used[0][0].long_prompts if used else "cut"),
        width_px=width_px,
        height_px=height_px,
        adapters=tuple((ref, weight) for _, ref, weight in used),
        tenant=tenant.key_id,
        deadline_s=limits.deadline_s,
        preview_every=_preview_every(asked),
    )
    # unique even if a caller gives two requests the same id
    order_id = f"{request.state.request_id}-{secrets.token_hex(4)}"
    pictures = tuple(
        replace(template, id=f"{order_id}-{index}", seed=first_seed + index)
        for index in range(num_pictures)
    )
    root = services.public_url or str(request.base_url).rstrip("/")
    notes = tuple(_prompt_notes(asked.prompt, prompt, used))
    return Order(asked, tenant, pictures, width_px, height_px, root, notes), base


def _check_limits(
    limits: Limits,
    asked: GenerateRequest,
    base: ServedBase,
    size: tuple[int, int],
    num_pictures: int,
) -> None:
    """Refuse a request for everything that is over a limit, at once."""
    refused: list[RequestRefused] = []
    for check in (
        partial(_check_side, *size, base.side_multiple_px, limits.max_side_px),
        partial(limits.check_cost, *size, asked.steps, num_pictures),
        partial(limits.check_texts, prompt=asked.prompt, negative_prompt=asked.negative_prompt),
        partial(_check_most, "guidance_scale", asked.guidance_scale or 0, limits.max_guidance),
        partial(_check_most, "adapters", len(asked.adapters or ()), limits.max_adapters),
    ):
        try:
            check()
        except RequestRefused as error:
            refused.append(error)
    if len(refused) == 1:
        raise refused[0]
    if refused:
        texts = [": ".join(filter(None, (one.message, one.remedy))) for one in refused]
        raise RequestRefused("; ".join(texts), "", refused[0].param)


def _first_seed(asked: int | None, default: int | None, num_pictures: int) -> int:
    """The seed of the first image; random if neither the request nor the default has one."""
    seed = default if asked in (None, ANY_SEED) else asked
    if seed is None:
        seed = secrets.randbelow(2**32)
    if seed > MAX_SEED - num_pictures:
        raise RequestRefused(
            f"seed: too large for {num_pictures} images that count up from it",
            f"write {MAX_SEED - num_pictures} or less",
            "seed",
        )
    return seed


async def check_adapters(services: Services, tenant: Tenant, asked: GenerateRequest) -> None:
    """Refuse a request whose adapters are not available to this caller, or no longer.

    Raises:
        ServingError: as ``validate_request`` does.
    """
    await _find_adapters(services, tenant, asked, await services.client.facts())


def _check_most(field: str, value: float, most: float) -> None:
    if value > most:
        raise RequestRefused(f"{field}: {value:g} is over the limit of {most:g}", "", field)


def _check_side(width_px: int, height_px: int, multiple_px: int, most_px: int) -> None:
    if width_px % multiple_px or height_px % multiple_px:
        width, height = (_rounded(one, multiple_px, most_px) for one in (width_px, height_px))
        raise RequestRefused(
            f"size: sides are multiples of {multiple_px} px", f"write {width}x{height}", "size"
        )


def _rounded(side_px: int, multiple_px: int, most_px: int) -> int:
    """The nearest multiple that is no larger than the limit."""
    nearest = min(round(side_px / multiple_px), most_px // multiple_px)
    return max(1, nearest) * multiple_px


def _preview_every(asked: GenerateRequest) -> int:
    """Steps between previews that spread the requested number evenly."""
    count = (asked.partial_images or 0) if asked.stream else 0
    return max(1, asked.steps // (count + 1)) if count else 0


async def _find_adapters(
    services: Services, tenant: Tenant, asked: GenerateRequest, base: ServedBase
) -> list[tuple[AdapterFacts, AdapterRef, float]]:
    """The adapters of a request, beginning with the one that ``model`` names."""
    wanted: list[tuple[str, float]] = []
    if asked.model is not None and asked.model not in (base.id, "base"):
        weight = asked.adapter_weight
        wanted.append((asked.model, weight if weight is not None else 1.0))
    wanted += [(use.model, use.weight) for use in asked.adapters or ()]

    async def find(model: str, weight: float) -> tuple[AdapterFacts, AdapterRef, float]:
        named, facts = await services.catalog.resolve(tenant.namespace, model)
        if facts.base_fingerprint != base.fingerprint:
            theirs, ours = facts.base_family, base.family
            families = ""
            if theirs.pipeline != ours.pipeline:
                families = f": on {theirs.title}, not on {ours.title}"
            raise RequestRefused(
                f"{named.name} was trained on another base than this endpoint holds{families}",
                "train it on this base, or use the endpoint of its own base",
                "model",
            )
        return facts, AdapterRef(named.job_key, tenant.namespace, named.name, named.sha256), weight

    used = list(await asyncio.gather(*(find(model, weight) for model, weight in wanted)))
    _check_distinct([ref for _, ref, _ in used])
    return used


def _check_distinct(refs: Sequence[AdapterRef]) -> None:
    """Refuse an adapter that is named twice, whatever the weights: they would add up."""
    seen: set[tuple[str, str]] = set()
    for ref in refs:
        if (which := (ref.key, ref.sha256)) in seen:
            raise RequestRefused(
                f"adapters: {ref.name} is named twice",
                "name it once, in 'model' or in 'adapters', with the weight that it should have",
                "adapters",
            )
        seen.add(which)


def _prompt_notes(
    asked: str, prompt: str, used: Sequence[tuple[AdapterFacts, AdapterRef, float]]
) -> Iterator[str]:
    """Notes on a prompt that is valid, but hardly what the caller means.

    Args:
        asked: the prompt as written, with ``[V]`` and ``[V:name]``.
        prompt: the prompt with the identifiers in their place.
    """
    tags = {match.group(1) or used[0][0].name for match in TAG.finditer(asked)}
    # adapters may share an identifier, which then names only those that are written as tags
    plain = TAG.sub(" ", asked)
    for facts, _, weight in used:
        own = "[V]" if facts is used[0][0] else f"[V:{facts.name}]"
        subject = f"{own} {facts.class_noun or ''}".rstrip()
        if not weight:
            continue
        if facts.name not in tags and not names_identifier(plain, facts.identifier):
            yield (
                f"prompt: it does not name the subject of {facts.name}; put {own} where the "
                f"subject belongs, as in: a photo of {subject}"
            )
        elif facts.class_noun and not _has_noun(prompt, facts.class_noun):
            yield (
                f"prompt: it does not name the class of {facts.name}, {facts.class_noun}; write it "
                f"after the subject, as in: a photo of {subject}"
            )
    for tag in adapter_tags(prompt):
        yield f"prompt: {tag} is read as plain words; name adapters in 'model' and 'adapters'"
    for syntax in emphasis(prompt):
        yield f"prompt: {syntax} is read as plain words; words have no weights here"


def _has_noun(prompt: str, noun: str) -> bool:
    pattern = rf"(?<!\w){re.escape(noun)}(?:s|es)?(?!\w)"
    return re.search(pattern, prompt, re.IGNORECASE) is not None


def _fill(prompt: str, used: Sequence[AdapterFacts]) -> str:
    """The prompt with identifiers in place of ``[V]`` and ``[V:name]``."""
    identifiers = {facts.name: facts.identifier for facts in used}
    if (mistyped := near_miss(prompt, identifiers)) is not None:
        text, tag = mistyped
        raise RequestRefused(
            f"prompt: {text} is not how a subject is named",
            f"write {tag}; weights are fields: 'adapter_weight', and 'weight' in 'adapters'",
            "prompt",
        )
    text, unknown = fill_tags(prompt, identifiers)
    if unknown is not None:
        raise RequestRefused(
            f"prompt: no adapter of this request stands for {unknown}",
            "name one in 'model' or in 'adapters'",
            "prompt",
        )
    return text
