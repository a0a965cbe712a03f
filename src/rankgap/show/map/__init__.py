"""The map of a data set: one page."""
