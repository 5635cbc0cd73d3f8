"""The bank: stacked adapter weights in slots over one frozen base."""
