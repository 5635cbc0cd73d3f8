"""The embedded base: a very small Stable Diffusion, trained on a synthetic world."""
