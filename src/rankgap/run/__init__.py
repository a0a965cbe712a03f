"""A run: what it is asked to be, what that leads to, how it trains, and the folder that it leaves."""
