"""Stores that fail, and what is written to them."""
