"""Support of tests that run commands."""
