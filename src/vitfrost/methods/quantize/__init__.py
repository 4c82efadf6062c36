"""Quantizers, range search, LayerNorm scale re-parameterization and exact bit packing."""
