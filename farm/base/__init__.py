"""The frozen base model: load any, encode, denoise, decode, and its noise schedule."""
