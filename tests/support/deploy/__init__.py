"""Descriptions of the files that deploy the farm, and checks of them."""
