"""A distributed batch fine-tuning farm on Ray: one small LoRA adapter per subject."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("dreambooth-farm")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0.0.0"

__all__ = ["__version__"]
