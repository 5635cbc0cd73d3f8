"""``farm.load``: an adapter from a store, ready to generate images and to be exported.

Owns the loaded adapter and the bases that loaded adapters share. For many users at once there is
the endpoint, ``farm serve``.
"""

from __future__ import annotations

import functools
import os
import tempfile
import threading
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from farm.adapters.bank.bank import Bank
from farm.adapters.file_names import DIFFUSERS_FILE
from farm.adapters.files.folder import load_adapter
from farm.adapters.lookup import find_adapter
from farm.adapters.record import AdapterRecord
from farm.adapters.registry import NEW_VERSION, NamedAdapter, Registry
from farm.adapters.weights import AdapterWeights
from farm.api.generation import check_arguments, filled
from farm.api.keywords import Location, check_location
from farm.base.generate import generate_images
from farm.base.interface import Base
from farm.base.loading import load_base
from farm.base.names import trained_on
from farm.errors import UserError
from farm.recipe import LongPrompts
from farm.schedulers import SchedulerName
from farm.serving.request import MAX_SIDE_PX
from farm.storage import Store
from farm.training.run.export import export_adapter

__all__ = ["Adapter", "load"]

MAX_BASES = 2
"""Bases kept in memory for the adapters that were loaded last."""


@dataclass(frozen=True)
class _SharedBase:
    """A base that several loaded adapters use in turn; it carries one bank at a time."""

    base: Base
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(frozen=True)
class Adapter:
    """One committed adapter with its base: the version that its name had when it was loaded."""

    namespace: str
    name: str
    record: AdapterRecord
    """Recipe, prompts, digests, losses and quality card."""
    weights: AdapterWeights = field(repr=False)
    _named: NamedAdapter = field(repr=False)
    _registry: Registry = field(repr=False)
    _shared: _SharedBase = field(repr=False)

    def generate(
        self,
        prompt: str,
        *,
        seed: int = 0,
        steps: int = 25,
        guidance: float = 5.0,
        negative_prompt: str = "",
        size_px: tuple[int, int] | None = None,
        scheduler: SchedulerName = "base",
        long_prompts: LongPrompts | None = None,
    ) -> Image.Image:
        """Generate one image, the same that the endpoint generates for these values.

        Args:
            prompt: ``[V]`` or ``[V:name]`` stands for the subject.
            seed: of the initial noise; equal seeds give equal images.
            steps: denoising steps.
            guidance: classifier-free guidance scale; 1 or less turns guidance off.
            size_px: width and height; None takes the base's resolution.
            scheduler: ``base`` takes the base's.
            long_prompts: ``cut`` or ``chunk``; None takes the recipe's.

        Raises:
            UserError: if a value is of another type or out of range, or the prompt is empty or asks
                for another adapter's subject.
        """
        check_arguments(
            prompt=prompt, seed=seed, steps=steps, guidance=guidance, size_px=size_px,
            negative_prompt=negative_prompt, scheduler=scheduler, long_prompts=long_prompts,
        )  # fmt: skip
        base = self._shared.base
        width, height = size_px or (base.resolution_px, base.resolution_px)
        _check_side(base, (width, height))
        with self._shared.lock, closing(self._bank()) as bank:
            (pixels_PP3,) = generate_images(
                base,
                [filled(prompt, self.name, self.record.identifier)],
                [seed],
                negative_prompt=negative_prompt,
                chunked=[(long_prompts or self._long_prompts) == "chunk"],
                routing=bank.image_routing([0]),
                steps=steps,
                guidance=guidance,
                width_px=width,
                height_px=height,
                scheduler=scheduler,
            )
        return Image.fromarray(pixels_PP3.numpy())

    def export(self, out: Location, form: str | None = None) -> Path:
        """Copy the adapter into a folder, as ``farm export`` does.

        Args:
            out: the folder to write to.
            form: ``diffusers``, ``peft`` or ``kohya`` writes that form alone; None writes all.

        Returns:
            The folder or file that was written, named after the adapter.

        Raises:
            UserError: if the form is unknown, or the adapter was saved without it.
            OutputUnusable: if ``out`` cannot be written.
            AdapterFileError: if a file in the store is missing or damaged.
        """
        return export_adapter(self._registry, self._named, Path(out), form=form)

    @property
    def _long_prompts(self) -> LongPrompts:
        return self.record.recipe.long_prompts if self.record.recipe else "cut"

    def _bank(self) -> Bank:
        """A bank with this adapter in its only slot."""
        base = self._shared.base
        layers = [name.partition(".") for name in self.weights.layers]
        denoiser = [path for component, _, path in layers if component == base.denoiser_name]
        encoder = [
            f"{component}.{path}" for component, _, path in layers if component in base.text_names
        ]
        bank = Bank(
            base,
            num_slots=1,
            max_rank=self.weights.rank,
            target_modules=denoiser,
            text_encoder_modules=encoder,
        )
        bank.set_slot(0, self.weights)
        return bank


def load(
    store: Location | Store,
    name: str,
    *,
    base: Location | None = None,
    device: str = "cpu",
) -> Adapter:
    """Load a committed adapter and its base.

    Adapters on the same base and device share it in memory.

    Args:
        store: folder or fsspec URL of the store.
        name: ``name`` (of the default namespace) or ``namespace/name``; ``name@key`` is one
            version.
        base: where the base is; None takes the one that the adapter was trained on.
        device: ``cpu`` or ``cuda``.

    Raises:
        StoreUnusable: if the store is a local folder that does not exist.
        UserError: if no adapter has this name, it is revoked, or it belongs to another base.
        AdapterFileError: if its files are missing or damaged.
        BaseModelError: if the base cannot be loaded.
    """
    if not isinstance(store, Store):
        check_location("store", store)
    if base is not None:
        check_location("base", base)
    for argument, text in (("name", name), ("device", device)):
        if not isinstance(text, str):
            raise UserError(f"{argument} is {text!r}", "see help(farm.load)")
    registry = Registry(store if isinstance(store, Store) else Store(os.fspath(store)))
    registry.store.check_exists()
    named = _find(registry, name)
    record = registry.record(named.job_key)
    known_as = trained_on(record.base_id, record.base_fingerprint)
    shared = _shared_base(os.fspath(base) if base is not None else known_as, device)
    if record.base_fingerprint != shared.base.fingerprint:
        raise UserError(
            f"{name} was trained on {known_as} ({record.base_family.title}), not on "
            f"{shared.base.name} ({shared.base.family.title})",
            f"give base={known_as!r}, in the revision it was trained on",
        )
    files = [DIFFUSERS_FILE] if DIFFUSERS_FILE in record.files else None
    with tempfile.TemporaryDirectory(prefix="farm-load-") as folder:
        registry.fetch(named.job_key, folder, names=files)
        weights = load_adapter(folder, shared.base)
    return Adapter(named.namespace, named.name, record, weights, named, registry, shared)


def _find(registry: Registry, text: str) -> NamedAdapter:
    named = find_adapter(registry, text)
    if registry.is_revoked(named.job_key, named.namespace):
        raise UserError(f"{text} is revoked", NEW_VERSION)
    return named


@functools.lru_cache(MAX_BASES)
def _shared_base(name: str, device: str) -> _SharedBase:
    return _SharedBase(load_base(name, device=device))


def _check_side(base: Base, size_px: tuple[int, int]) -> None:
    """Refuse a size that the base cannot generate.

    Raises:
        UserError: if a side is too small, too large, or not a multiple of the base's.
    """
    factor = base.memory.latent_factor
    if any(side < factor or side > MAX_SIDE_PX or side % factor for side in size_px):
        raise UserError(
            f"size_px is {size_px[0]} x {size_px[1]}",
            f"give multiples of {factor} from {factor} to {MAX_SIDE_PX:,}",
        )
