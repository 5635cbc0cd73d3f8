"""Batch sizing: the number of rows in a pass, measured, saved and bounded by memory."""
