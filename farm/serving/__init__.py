"""The endpoint: one base model, many adapters, a different one in every row of the batch."""
