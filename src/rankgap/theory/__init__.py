"""The theory, to be checked rather than told: majorisation, the two lemmas, the linear model's gradient flow."""

from rankgap.theory.flow import FLOWS, Flow, FlowResult, linear_flow
from rankgap.theory.lemmas import Lemma, filter_lemma, majorises, step_lemma

__all__ = [
    "FLOWS",
    "Flow",
    "FlowResult",
    "Lemma",
    "filter_lemma",
    "linear_flow",
    "majorises",
    "step_lemma",
]
