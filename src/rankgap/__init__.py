"""Train, watch and design non-contrastive self-supervised learning through its rank difference."""

__version__ = "0.1.0"
