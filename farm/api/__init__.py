"""The Python interface: check, plan and run manifests, and load adapters.

``import farm`` gives access to all of it. It takes the options of the command line as keyword
arguments, returns plain values, prints nothing, and raises the errors of ``farm.errors``.
"""

from farm.api.adapter import Adapter, load
from farm.api.manifests import check, plan, run

__all__ = ["Adapter", "check", "load", "plan", "run"]
