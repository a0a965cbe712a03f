"""Features of whole data sets: computed into a file, read back, grouped and compared."""

from rankgap.embed.embedding import embed_images
from rankgap.embed.formats import FeatureFile, read_features

__all__ = ["FeatureFile", "embed_images", "read_features"]
