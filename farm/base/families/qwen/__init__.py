"""Families that share Qwen-Image's VAE and its template for prompts."""
