"""The HTTP interface: OpenAI's image routes, limits, streaming, image links."""
