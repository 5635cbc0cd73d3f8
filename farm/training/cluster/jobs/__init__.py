"""Runs as Ray Jobs: submission, uploads, supervision."""
