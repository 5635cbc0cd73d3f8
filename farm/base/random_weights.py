"""Random-weight pipelines of any family and size, built on demand: for tests, and for benchmarks.

``tiny`` and ``tiny-…`` run in milliseconds. Builds named after a model, such as ``sd15``, have its
real shape, so they cost exactly what the real weights cost; they generate noise. On the device
``meta`` they have no weights at all and serve for counting.
"""

from __future__ import annotations

from typing import Any, get_args

import torch

from farm.base.builds.flux1 import FLUX1_BUILDS
from farm.base.builds.flux2 import FLUX2_DEV_BUILDS, KLEIN_BUILDS
from farm.base.builds.qwen import KREA2_BUILDS, QWEN_IMAGE_BUILDS
from farm.base.builds.sd3 import SD3_BUILDS
from farm.base.builds.unet import SD_BUILDS, SDXL_BUILDS
from farm.base.builds.z_image import Z_IMAGE_BUILDS
from farm.base.names import BuiltName

__all__ = ["BUILDS", "build_pipeline"]

BUILDS: dict[str, Any] = {
    **SD_BUILDS,
    **SDXL_BUILDS,
    **Z_IMAGE_BUILDS,
    **KLEIN_BUILDS,
    **FLUX2_DEV_BUILDS,
    **FLUX1_BUILDS,
    **SD3_BUILDS,
    **QWEN_IMAGE_BUILDS,
    **KREA2_BUILDS,
}
"""Each has a method ``make``, which builds its pipeline."""
assert set(BUILDS) == set(get_args(BuiltName))


def build_pipeline(
    name: BuiltName,
    *,
    seed: int = 0,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    sample_on: str | torch.device = "cpu",
) -> Any:
    """Build a pipeline with random weights that depend only on the seed.

    The weights are sampled on the CPU in float32, so every device and dtype holds the same model.

    Args:
        dtype: None means float32 on a CPU, and float16 elsewhere.
        sample_on: another device samples other weights, in a fraction of the time.
    """
    place = torch.device(device)
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    try:
        with torch.device("meta" if place.type == "meta" else sample_on):
            pipeline = BUILDS[name].make()
    finally:
        torch.random.set_rng_state(state)
    pipeline.set_progress_bar_config(disable=True)
    precision = dtype or (torch.float32 if place.type in ("cpu", "meta") else torch.float16)
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.to(device=place, dtype=precision).eval()
    return pipeline
