"""The MLP predictor of BYOL and SimSiam.

Shapes: V views, B images per view, D embedding width.
"""

from __future__ import annotations

from dataclasses import dataclass

from rankgap.errors import UserError
from rankgap.model.maps import Place, register_map
from rankgap.model.mlp import Activation, PerView, check_widths, mlp


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictorOptions:
    """The predictor's layers.

    Args:
        widths: widths of the hidden layers; the output is as wide as the input.
        activation: activation between the layers.
    """

    widths: tuple[int, ...] = ()
    activation: Activation = "relu"

    def __post_init__(self) -> None:
        check_widths(self, self.widths)


@register_map("predictor", "online", options=PredictorOptions(), predicts=True, per_image=True)
class Predictor(PerView):
    """A multi-layer perceptron from embeddings (V, B, D) to predictions (V, B, D), for each view separately.

    Args:
        place: where the map stands.
        options: the layers.

    Raises:
        UserError: the options give no hidden layer.
    """

    def __init__(self, place: Place, options: PredictorOptions) -> None:
        if not options.widths:
            raise UserError(
                "the predictor needs the width of a hidden layer, but the recipe has none: set "
                "online.predictor.widths"
            )
        super().__init__(mlp((place.dim, *options.widths, place.dim), activation=options.activation))
