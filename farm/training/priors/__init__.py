"""Prior sets: stored once per class, generated through Ray Data."""
