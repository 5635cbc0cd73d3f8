"""The slot trainer: many subjects in one forward and backward pass. Imports torch, never Ray."""
