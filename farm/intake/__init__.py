"""What the user hands in: manifests, photos, and the check that finds every fault at once."""
