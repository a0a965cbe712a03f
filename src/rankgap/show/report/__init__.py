"""The report of one run or many: a page that opens from disk."""
