"""Captions of photos: text files and tables beside them, and how each manifest form reads them."""
