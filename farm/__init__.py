"""A distributed batch fine-tuning farm on Ray: one small LoRA adapter per subject.

The Python interface is as small as the command line::

    import farm

    report = farm.check("photos/")
    summary = farm.run("photos/", store="work", recipe={"steps": 300})
    image = farm.load("work", "my_cat").generate("a photo of [V] cat in space", seed=7)

Importing the package imports neither torch nor Ray; the functions do when they are called.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from farm.model_imports.lean import install as _install_lean_imports

_install_lean_imports()

if TYPE_CHECKING:
    from farm.api import Adapter, check, load, plan, run
    from farm.version import __version__

__all__ = ["Adapter", "__version__", "check", "load", "plan", "run"]


def __getattr__(name: str) -> object:
    """Import the Python interface, and the version, when they are first used."""
    if name == "__version__":
        return import_module("farm.version").__version__
    if name in __all__:
        return getattr(import_module("farm.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
