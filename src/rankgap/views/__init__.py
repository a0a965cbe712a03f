"""Random views of a batch of images, and the one view from which features are read."""

from rankgap.views.eval_view import eval_view
from rankgap.views.parameters import Parameters
from rankgap.views.random_views import Views
from rankgap.views.view_config import ViewConfig

__all__ = ["Parameters", "ViewConfig", "Views", "eval_view"]
