"""Quality: scores and verdicts of adapters, studies, and the report of a run."""
