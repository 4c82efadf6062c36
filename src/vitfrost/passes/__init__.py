"""A plan applied to a model: quantize, then freeze."""
