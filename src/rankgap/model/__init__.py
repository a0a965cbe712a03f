"""The picture as code: branches, the maps on them, the alignment, and the rows that combine these."""
