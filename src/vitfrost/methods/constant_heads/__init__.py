"""Whole heads frozen to a constant map: kinds of constants, their fit to mean maps, the run-time module, their costs."""
