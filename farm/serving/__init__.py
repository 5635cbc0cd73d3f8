"""The endpoint: one base, many adapters, a different one in every row of the running batch."""
