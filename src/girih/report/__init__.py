"""The report of a fit or of an inspection: numbers in plain words, pictures, and one page that holds both."""

from girih.report.injectivity import Verdict
from girih.report.inspection import Inspection, inspect_decoder
from girih.report.numbers import Number, explain, noise_text
from girih.report.page import Picture, render

__all__ = ["Inspection", "Number", "Picture", "Verdict", "explain", "inspect_decoder", "noise_text", "render"]
