"""Hostile photos, manifests and requests."""
