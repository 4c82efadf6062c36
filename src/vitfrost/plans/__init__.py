"""Plans: which attention entries are frozen and how the model is quantised, in a file a person can read, edit and diff."""
