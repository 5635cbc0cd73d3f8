"""Training on Ray: Ray Train lanes, node watch, job submission, authentication."""
