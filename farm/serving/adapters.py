"""All of an engine that has to do with adapters: the banks on its base, the cache, the slots.

Owns how these parts are opened together and which adapters fit them. An engine without a source
has none of it and draws with the bare base.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from farm.adapters.bank import Bank
from farm.adapters.formats import load_adapter
from farm.adapters.names import layer_names
from farm.adapters.weights import AdapterWeights
from farm.base.model import Base
from farm.errors import AdapterFileError, UserError
from farm.serving.cache import AdapterCache, AdapterSource
from farm.serving.config import EngineConfig
from farm.serving.prompts import TEXT_ENCODER, PromptEncoder
from farm.serving.slots import SlotTable

__all__ = ["AdapterSide"]


class AdapterSide:
    """Banks, cache and slots over one base."""

    def __init__(
        self,
        base: Base,
        source: AdapterSource | None,
        config: EngineConfig,
        cache_folder: str | Path | None,
    ) -> None:
        """Wrap the base's layers and open the cache.

        Raises:
            UserError: if the config does not fit the base, or a source has no cache folder.
        """
        if source is not None and cache_folder is None:
            raise UserError("an engine with adapters needs a cache folder", "name one")
        self._base = base
        layers = layer_names(base)  # before the banks wrap some of them
        self.bank = None if source is None else _open_bank(base, config)
        self.prompts = PromptEncoder(
            base,
            modules=() if source is None else config.text_encoder_modules,
            max_rank=config.max_rank,
            max_adapters=config.limits.max_adapters,
            max_prompts=config.max_prompts,
        )
        self.slots = SlotTable(config.num_slots)
        self.cache: AdapterCache | None = None
        if source is not None and cache_folder is not None:
            self.cache = self._open_cache(source, config, Path(cache_folder), layers)

    def _open_cache(
        self, source: AdapterSource, config: EngineConfig, folder: Path, layers: Collection[str]
    ) -> AdapterCache:
        return AdapterCache(
            source,
            lambda path: load_adapter(path, layers),
            folder=folder,
            base_fingerprint=self._base.fingerprint,
            check=self.check_fits,
            prepare=lambda weights: weights.to(self._base.dtype),
            limits=config.cache,
        )

    def check_fits(self, weights: AdapterWeights) -> None:
        """Refuse what the banks cannot hold.

        Raises:
            AdapterFileError: for other layers, other shapes, or too large a rank.
        """
        assert self.bank is not None
        self.bank.check_fits(weights.of_component(self._base.denoiser_name))
        text = weights.of_component(TEXT_ENCODER)
        if self.prompts.bank is not None:
            self.prompts.bank.check_fits(text)
        elif text.layers:
            raise AdapterFileError(
                "it has text-encoder layers, which this endpoint does not serve",
                "set text_encoder_modules in the engine's config",
            )

    def start(self) -> None:
        """Begin to watch for revocations."""
        if self.cache is not None:
            self.cache.start()

    def close(self) -> None:
        """End the cache's threads and put the base's own layers back."""
        if self.cache is not None:
            self.cache.close()
        self.prompts.close()
        if self.bank is not None:
            self.bank.close()


def _open_bank(base: Base, config: EngineConfig) -> Bank:
    return Bank(
        base,
        num_slots=config.num_slots,
        max_rank=config.max_rank,
        target_modules=config.target_modules,
        dtype=base.dtype,
        max_per_row=config.limits.max_adapters,
    )
