"""Repair without gradients: layers re-fitted so that a changed model's residual stream meets the original's."""
