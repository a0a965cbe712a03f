"""A run: its configuration, the plan that this resolves to, its training, and its folder."""
