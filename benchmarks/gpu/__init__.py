"""The GPU suite: everything that is measured on a borrowed GPU, in one process."""
