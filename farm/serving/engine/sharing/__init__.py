"""How callers share one engine: the fair queue, their use, and the order of work."""
