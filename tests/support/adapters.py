"""Committed adapters with random weights, made in milliseconds, in a real store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from farm.adapters.bank.bank import Bank
from farm.adapters.bank.mixed import MixedBank
from farm.adapters.files.folder import save_adapter
from farm.adapters.record import AdapterRecord
from farm.adapters.registry import Registry
from farm.adapters.weights import AdapterWeights, LayerWeights
from farm.base.interface import Base
from farm.keys import key_of
from farm.recipe import Recipe
from farm.serving.request import AdapterRef
from farm.storage import Store

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
TEXT = ("q_proj", "v_proj")


def random_weights(
    base: Base,
    seed: int,
    *,
    rank: int = 4,
    alpha: float | None = None,
    strength: float = 1.0,
    text: bool = False,
) -> AdapterWeights:
    """An adapter that changes every image visibly."""
    bank = Bank(
        base,
        num_slots=1,
        max_rank=rank,
        target_modules=ATTENTION,
        text_encoder_modules=TEXT if text else (),
    )
    try:
        bank.init_slot(0, rank, alpha or float(rank), seed)
        drawn = bank.slot_weights(0)
    finally:
        bank.close()
    generator = torch.Generator().manual_seed(seed)
    layers = {
        name: LayerWeights(layer.down, strength * torch.randn(layer.up.shape, generator=generator))
        for name, layer in drawn.layers.items()
    }
    return AdapterWeights(layers, drawn.alphas)


def weights_on(
    bank: MixedBank,
    seed: int,
    *,
    targets: Sequence[str],
    rank: int = 2,
    alpha: float = 3.0,
    strength: float = 0.2,
    fill: float | None = None,
) -> AdapterWeights:
    """An adapter on the layers whose names end so; ``fill`` is the value of all its up halves."""
    generator = torch.Generator().manual_seed(seed)
    layers = {}
    for name in bank.layer_names:
        if not any(name.endswith(f".{target}") for target in targets):
            continue
        num_inputs, num_outputs, kernel = bank.size_of(name)
        area = kernel[0] * kernel[1] if kernel else 1
        down = torch.randn(rank, num_inputs // area, *kernel, generator=generator) / rank
        up = torch.randn(num_outputs, rank, *([1, 1] if kernel else []), generator=generator)
        up = up * strength / rank**0.5 if fill is None else torch.full_like(up, fill)
        layers[name] = LayerWeights(down / num_inputs**0.5 * 4, up)
    assert layers
    return AdapterWeights.with_alpha(layers, alpha)


def publish(
    registry: Registry,
    base: Base,
    weights: AdapterWeights,
    folder: Path,
    name: str,
    *,
    namespace: str = "default",
    fingerprint: str | None = None,
    forms: Sequence[str] = ("diffusers",),
) -> AdapterRef:
    """Save and commit an adapter under a name."""
    key = key_of("job", namespace=namespace, name=name, salt=str(folder))
    record = AdapterRecord(
        job_key=key,
        subject_id=name,
        namespace=namespace,
        name=name,
        class_noun="cat",
        instance_prompt="a photo of sks cat",
        base_id=base.name,
        base_fingerprint=fingerprint or base.fingerprint,
        recipe=Recipe(),
    )
    saved = save_adapter(folder / key, weights, record, base, forms=forms)
    registry.publish(saved, folder / key)
    named = registry.resolve(namespace, name)
    assert named is not None
    return AdapterRef(named.job_key, namespace, name, named.sha256)


def published(
    folder: Path, base: Base, count: int, *, rank: int = 4, text: bool = False
) -> tuple[Registry, list[AdapterRef]]:
    """A store with this many adapters, ``cat-0`` and up."""
    registry = Registry(Store(folder / "store"))
    refs = [
        publish(
            registry,
            base,
            random_weights(base, seed, rank=rank, text=text),
            folder / "local",
            f"cat-{seed}",
        )
        for seed in range(count)
    ]
    return registry, refs


def mixed_adapters(
    registry: Registry, base: Base, folder: Path, *, strength: float, text: bool = False
) -> list[tuple[tuple[AdapterRef, float], ...]]:
    """What the pictures of a mixed batch are generated with: two adapters of different ranks, the
    second with text layers if asked, and none."""
    refs = [
        publish(
            registry,
            base,
            random_weights(
                base, seed, rank=2 + seed, alpha=3.0, strength=strength, text=text and seed > 0
            ),
            folder,
            f"cat-{seed}",
        )
        for seed in range(2)
    ]
    return [*(((ref, 1.0),) for ref in refs), ()]
