"""The endpoint on Ray Serve: engine client, adapter-aware request router, metrics."""
