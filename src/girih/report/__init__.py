"""The report of a fit: its numbers in plain words, its pictures, and one page that holds both."""

from girih.report.numbers import Number, explain, noise_text
from girih.report.page import Picture, render

__all__ = ["Number", "Picture", "explain", "noise_text", "render"]
