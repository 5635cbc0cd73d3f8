"""Words for people, and names for files: durations, lists, visible characters, safe names."""
