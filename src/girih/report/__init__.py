"""The report of a fit or of an inspection: numbers in plain words, pictures, and one page that holds both."""

from girih.report.inspection import Inspection, Verdict, inspect_decoder
from girih.report.page import Number, Picture, explain, noise_text, render

__all__ = ["Inspection", "Number", "Picture", "Verdict", "explain", "inspect_decoder", "noise_text", "render"]
