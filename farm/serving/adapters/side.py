"""An engine's adapter components: the banks on its base, the cache and the slots.

Owns how they are opened together and which adapters fit them. An engine without a source of
adapters has none of them and generates with the bare base.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from farm.adapters.bank.layout import denoiser_layers, text_layers
from farm.adapters.bank.mixed import MixedBank
from farm.adapters.files.folder import load_adapter
from farm.adapters.files.layer_names import layer_names
from farm.adapters.weights import AdapterWeights
from farm.base.interface import Base
from farm.errors import AdapterFileError, UserError
from farm.serving.adapters.cache import AdaptedBase, AdapterCache, AdapterSource
from farm.serving.adapters.prompts import PromptCache
from farm.serving.adapters.slots import SlotTable
from farm.serving.config import EngineConfig, EngineStats
from farm.serving.memory import free_bytes

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
        """Open the banks and the cache.

        Raises:
            UserError: if the config does not fit the base, or a source has no cache folder.
        """
        if source is not None and cache_folder is None:
            raise UserError("an engine with adapters needs a cache folder", "name one")
        self._base, self._config = base, config
        layers = layer_names(base)
        self._allowed = allowed_layers(base, config)
        self.bank = None if source is None else _open_bank(base, config)
        self.prompts = PromptCache(
            base,
            max_adapters=0 if source is None else config.limits.max_adapters,
            max_prompts=config.max_prompts,
        )
        budget = config.adapter_mib * 2**20 if config.adapter_mib else free_bytes(base.device) // 4
        self.slots = SlotTable(config.num_slots, budget)
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
            base=AdaptedBase(self._base.fingerprint, self._base.family.title),
            prepare=self._prepared,
            limits=config.cache,
        )

    def _prepared(self, weights: AdapterWeights) -> AdapterWeights:
        self.check_fits(weights)
        return weights.to(self._base.dtype)

    def check_fits(self, weights: AdapterWeights) -> None:
        """Refuse adapters that do not fit the base or that the operator's limits exclude.

        Raises:
            AdapterFileError: if layers or shapes differ, or a limit is exceeded.
        """
        assert self.bank is not None
        limit = self._config.max_rank
        if weights.rank > limit:
            raise AdapterFileError(
                f"its rank {weights.rank} is above this endpoint's limit of {limit} "
                f"(--max-rank, or engine.max_rank in the config file)",
                f"start the endpoint with a limit of {weights.rank} or more, or with none",
            )
        denoiser = weights.of_component(self._base.denoiser_name)
        for names, what, option in (
            ((self._base.denoiser_name,), "layers", "target_modules"),
            (self._base.text_names, "text-encoder layers", "text_encoder_modules"),
        ):
            found = {layer for name in names for layer in weights.of_component(name).layers}
            outside = sorted(found - self._allowed[option])
            if outside and getattr(self._config, option) is not None:
                raise AdapterFileError(
                    f"it changes {len(outside)} {what} that this endpoint's limit excludes, "
                    f"such as {outside[0]} (engine.{option} in the config file)",
                    "add their endings to the limit, or remove it",
                )
        self.bank.check_fits(denoiser)
        for name, bank in self.prompts.banks.items():
            bank.check_fits(weights.of_component(name))
        num_bytes = self.bank.num_bytes(denoiser)
        if num_bytes > self.slots.max_bytes:
            raise AdapterFileError(
                f"it takes {num_bytes / 2**20:.0f} MiB in the model, and this endpoint has room "
                f"for {self.slots.max_bytes / 2**20:.0f} MiB (engine.adapter_mib in the config "
                "file)",
                "raise that, or train it with a lower rank",
            )

    def add_stats(self, stats: EngineStats) -> None:
        """Fill in the adapters' part of an engine's statistics."""
        stats.slots_in_use = self.slots.num_in_use
        stats.slots_filled = len(self.slots.keys)
        stats.slot_bytes = self.slots.num_bytes
        stats.prompt_hits = self.prompts.num_hits
        stats.prompts_encoded = self.prompts.num_encoded
        if self.cache is not None:
            stats.cache = self.cache.stats
            stats.revocations_age_s = self.cache.revocations.age_s

    def start(self) -> None:
        """Start watching for revocations."""
        if self.cache is not None:
            self.cache.start()

    def close(self) -> None:
        """Stop the cache's threads and restore the base's own layers."""
        if self.cache is not None:
            self.cache.close()
        self.prompts.close()
        if self.bank is not None:
            self.bank.close()


def allowed_layers(base: Base, config: EngineConfig) -> dict[str, frozenset[str]]:
    """The layers that each of the operator's limits allows, by the limit's name.

    Raises:
        UserError: if a limit's suffix matches no layer of the base.
    """
    return {
        "target_modules": frozenset(denoiser_layers(base, config.target_modules or ())),
        "text_encoder_modules": frozenset(text_layers(base, config.text_encoder_modules or ())),
    }


def _open_bank(base: Base, config: EngineConfig) -> MixedBank:
    return MixedBank(
        base,
        base.denoiser_name,
        num_slots=config.num_slots,
        max_per_row=config.limits.max_adapters,
    )
