"""Measured claims: each folder holds a script, its results, and a page about them."""
