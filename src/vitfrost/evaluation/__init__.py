"""What a model costs and how well it does: intervals, result rows, multiply-accumulates, inspection, evaluation."""
