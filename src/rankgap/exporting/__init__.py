"""Handing a trained encoder to other tools: a folder that loads without rankgap."""
