"""The slot trainer, and the lanes, priors, ledger and plan that run it on a cluster."""
