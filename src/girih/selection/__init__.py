"""Choosing a generator: a grid of them compared by exact AIC, BIC and held-out likelihood, with the elbow in S."""

from girih.selection.candidates import Candidate
from girih.selection.result import Elbow, ElbowPoint, Row, SelectionResult
from girih.selection.select import select_model

__all__ = ["Candidate", "Elbow", "ElbowPoint", "Row", "SelectionResult", "select_model"]
