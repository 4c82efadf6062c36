"""Plans: which attention entries are frozen and how the model is quantized, in a file a person can read, edit and diff."""
