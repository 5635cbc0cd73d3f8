"""Devices: copies that no thread waits for, and what CUDA errors mean."""
