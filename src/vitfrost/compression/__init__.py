"""A plan applied to a model: quantise, then freeze."""
