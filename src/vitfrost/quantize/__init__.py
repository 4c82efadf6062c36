"""Quantisers, range search, LayerNorm scale re-parameterisation and exact bit packing."""
