"""One HTML page of a run that needs no network: what was done, what it costs, and every head's maps."""
