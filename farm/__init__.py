"""A distributed batch fine-tuning farm on Ray: one small LoRA adapter per subject.

The Python interface is as small as the command line::

    import farm

    report = farm.check("photos/")
    summary = farm.run("photos/", store="work", recipe={"steps": 300})
    image = farm.load("work", "my_cat").generate("a photo of [V] cat in space", seed=7)

Importing the package imports neither torch nor Ray; what is used of it imports what it needs.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from farm.model_imports.lean import install as _install_lean_imports

_install_lean_imports()

if TYPE_CHECKING:
    from farm.api.adapter import Adapter, load
    from farm.api.manifests import check, plan, run
    from farm.version import __version__

__all__ = ["Adapter", "__version__", "check", "load", "plan", "run"]
_MODULES = {
    "Adapter": "farm.api.adapter",
    "load": "farm.api.adapter",
    "check": "farm.api.manifests",
    "plan": "farm.api.manifests",
    "run": "farm.api.manifests",
    "__version__": "farm.version",
}


def __getattr__(name: str) -> object:
    """Import the Python interface, and the version, when they are first used."""
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
