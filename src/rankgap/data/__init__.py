"""Where images come from: `load_data` reads them, and `inspect` checks them first."""

from rankgap.data.crops import Crops
from rankgap.data.encoded import Broken
from rankgap.data.image_set import Batch, ImageSet
from rankgap.data.inspection import Inspection, inspect
from rankgap.data.loading import load_data

__all__ = ["Batch", "Broken", "Crops", "ImageSet", "Inspection", "inspect", "load_data"]
