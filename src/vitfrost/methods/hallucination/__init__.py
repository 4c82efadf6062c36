"""Hallucinated attention (hMHSA, arXiv 2306.10875): some heads' maps are computed, the others are made of them cheaply.

The paper's text is not public; what its abstract leaves open is an option here.
"""
