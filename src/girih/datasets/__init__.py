"""Data sets by name or by path: toys with known entropy, offline images and tables, local files."""

from girih.datasets.dataset import Dataset
from girih.datasets.files import load_frame
from girih.datasets.reading import FileFormat
from girih.datasets.registry import load, names
from girih.datasets.toys import circle_entropy, curve_entropy, line_entropy

__all__ = ["Dataset", "FileFormat", "circle_entropy", "curve_entropy", "line_entropy", "load", "load_frame", "names"]
