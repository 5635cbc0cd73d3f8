"""Access control: API keys, the catalog of adapters that a key can see."""
