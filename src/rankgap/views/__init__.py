"""Random views of a batch of images, and the one view that features are read from."""

from rankgap.views.random_views import Parameters, ViewConfig, Views, eval_view

__all__ = ["Parameters", "ViewConfig", "Views", "eval_view"]
