"""Plans under a budget: a search over heads, layers and ranks by their measured effect on the outputs, and what it leaves on disk."""
