"""What is learned: the bank in memory, adapter files on disk, names in the store."""
