"""Streaming statistics of attention maps: histograms, entropy, mean and variance of every attention weight."""
