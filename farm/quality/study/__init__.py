"""Studies that repeat the article's experiments: prior preservation, and training step by step."""
