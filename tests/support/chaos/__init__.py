"""Random faults on a cluster of several nodes, and what must be true after each run."""
