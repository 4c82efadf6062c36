"""Many plans on one model, measured with the work they share done once."""
