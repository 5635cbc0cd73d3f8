"""A lane: one process with one base that leases, trains and publishes jobs."""
