"""Adapters in serving: disk and memory cache, revocation, slots, prompt embeddings."""
