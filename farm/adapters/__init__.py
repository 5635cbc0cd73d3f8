"""Adapters: the bank in memory, adapter files on disk, and the registry in the store."""
