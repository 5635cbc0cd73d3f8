"""Parsers that keep the line of every value: YAML, JSON, delimited text."""
