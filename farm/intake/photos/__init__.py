"""Photos: finding, reading, decoding, inspecting and comparing them."""
