"""The second edition of the embedded base, at 128 px: its sizes, album, models and training."""
