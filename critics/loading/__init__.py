"""Weights from folders and the hub, and one wording for what can be wrong with them."""
