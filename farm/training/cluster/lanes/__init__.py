"""Lanes in Ray Train's processes: what its controllers import, and what its workers run."""
