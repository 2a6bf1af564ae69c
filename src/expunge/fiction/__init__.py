"""The embedded world: people who do not exist, and tiny models that really know them."""
