"""Manifest formats: one module for each form of file."""
