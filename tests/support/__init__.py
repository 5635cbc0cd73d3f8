"""Photos, manifests, adapters and servers for tests."""
