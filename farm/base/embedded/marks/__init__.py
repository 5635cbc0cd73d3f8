"""The mark reader: finds the star, stripes or dot of a figure, which the scorer cannot see."""
