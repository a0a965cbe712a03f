"""The theory in a form that can be checked: majorisation, the two lemmas, the linear flow, designs of filters."""

from rankgap.theory.design import Assessment, assess
from rankgap.theory.flow import FLOWS, Flow, FlowResult, linear_flow
from rankgap.theory.lemmas import Lemma, filter_lemma, majorises, step_lemma
from rankgap.theory.reference import Reference, reference_spectrum

__all__ = [
    "FLOWS",
    "Assessment",
    "Flow",
    "FlowResult",
    "Lemma",
    "Reference",
    "assess",
    "filter_lemma",
    "linear_flow",
    "majorises",
    "reference_spectrum",
    "step_lemma",
]
