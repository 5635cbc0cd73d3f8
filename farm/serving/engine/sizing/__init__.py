"""How many rows a pass may hold: measured, remembered, bounded by memory."""
