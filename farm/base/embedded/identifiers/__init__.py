"""Identifiers that the embedded base's text encoder keeps and its UNet ignores."""
