"""The step engine: admission, scheduling, denoising and decoding of mixed-adapter batches."""
