"""A run from manifest to adapters: preparation, driver, in-process and Ray execution."""
