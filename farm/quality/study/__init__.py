"""The article's claims, measured anew: with and without prior preservation, and step by step."""
