"""Choosing a generator: a grid of them compared by exact AIC, BIC and held-out likelihood, with the elbow in S."""

from girih.selection.candidates import Candidate, Outcome, factor_parameters, make_splits
from girih.selection.result import Elbow, ElbowPoint, Row, SelectionResult, find_elbow
from girih.selection.select import select_model

__all__ = [
    "Candidate",
    "Elbow",
    "ElbowPoint",
    "Outcome",
    "Row",
    "SelectionResult",
    "factor_parameters",
    "find_elbow",
    "make_splits",
    "select_model",
]
