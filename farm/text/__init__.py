"""Words for people, and names for files: durations, visible characters, safe names."""
