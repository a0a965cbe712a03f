"""Measured claims: each folder holds a script, its results and what they say."""
