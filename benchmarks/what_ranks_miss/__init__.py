"""Where the rank of features and their worth part."""
