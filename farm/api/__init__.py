"""The Python interface: check, plan and run manifests, and load adapters.

``import farm`` gives access to all of it. It takes the options of the command line as keyword
arguments, returns plain values, prints nothing, and raises the errors of ``farm.errors``. Manifests
and adapters are separate modules: checking and planning import no model library.
"""
