"""Compact feed-forward blocks (cFFN, arXiv 2306.10875): the second projection factorized, trained with parallel branches.

The paper's text is not public; what its abstract leaves open is an option here.
"""
