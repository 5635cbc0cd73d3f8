"""What the suite measures, and the base that its cases share.

Owns the sizes: those of a GPU, and tiny ones that run the same code on a CPU in seconds.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from farm.base.families.registry import family_of
from farm.base.interface import Base
from farm.base.random_weights import build_pipeline
from farm.keys import digest

__all__ = ["Setting"]

PEAK_TFLOPS = {"H200": 989, "H100": 989, "GH200": 989, "A100": 312, "L40S": 362, "L4": 121}
"""Dense bfloat16 peaks from the vendors' data sheets."""


@dataclass
class Setting:
    """Sizes of all cases."""

    device: torch.device
    build: str = "sd15"
    dtype: torch.dtype = torch.bfloat16
    steps: int = 20
    """Timed steps of a training case."""
    warm_up: int = 3
    rank: int = 4
    eager_slots: tuple[int, ...] = (8, 1, 4, 16, 32)
    fast_slots: tuple[int, ...] = (1, 8, 4, 16)
    """Slots of compiled and captured cases, most valuable first."""
    compile: bool | str = True
    large_build: str = "sdxl"
    large_slots: tuple[int, ...] = (4, 1, 8)
    requests: int = 96
    """Pictures of a serving case; slow methods generate an eighth of them."""
    pictures: int = 32
    """Pictures of a full pass."""
    adapters: int = 64
    sampling_steps: int = 25
    matrix: int = 8192
    copy_mib: int = 1024
    _bases: dict[str, Base] = field(default_factory=dict)

    @classmethod
    def tiny(cls, device: torch.device) -> Setting:
        """Every case at a size that only checks the code."""
        return cls(
            device,
            build="tiny",
            dtype=torch.float32,
            steps=1,
            warm_up=1,
            rank=2,
            eager_slots=(2, 1),
            fast_slots=(1,),
            compile="eager",
            large_build="",
            requests=4,
            pictures=2,
            adapters=3,
            sampling_steps=2,
            matrix=64,
            copy_mib=1,
        )

    @property
    def on_gpu(self) -> bool:
        """Whether times are a GPU's."""
        return self.device.type == "cuda"

    @property
    def hardware(self) -> str:
        """The device's name."""
        return torch.cuda.get_device_name(self.device) if self.on_gpu else "CPU"

    @property
    def peak_tflops(self) -> float | None:
        """The card's dense half-precision peak; None if unknown."""
        return next((v for k, v in PEAK_TFLOPS.items() if k in self.hardware), None)

    def base(self, build: str | None = None) -> Base:
        """The shared base, created on its first use with weights sampled on the device."""
        name = build or self.build
        if name not in self._bases:
            self._bases[name] = self._built(name)
        return self._bases[name]

    def _built(self, name: str) -> Base:
        """As ``load_base``, but sampled on the device: sampling on a CPU takes 16 s for v1-5."""
        pipeline = build_pipeline(
            name,  # type: ignore[arg-type]
            device=self.device,
            dtype=self.dtype,
            sample_on=self.device,
        )
        family = family_of(name, type(pipeline).__name__)
        return family(pipeline, name=name, fingerprint=digest({"gpu suite": name}))

    def drop(self, build: str) -> None:
        """Free a base that no later case uses."""
        self._bases.pop(build, None)
        self.free()

    def free(self) -> None:
        """Return unused memory to the device."""
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    @contextmanager
    def peak_memory(self, found: dict[str, float]) -> Iterator[None]:
        """Write the peak of the enclosed work into ``found``, in GiB; nothing on a CPU."""
        self.free()
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats(self.device)
        yield
        if self.on_gpu:
            found["peak_gib"] = torch.cuda.max_memory_allocated(self.device) / 2**30
            found["reserved_gib"] = torch.cuda.max_memory_reserved(self.device) / 2**30
