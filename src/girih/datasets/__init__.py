"""Data sets by name or by path: toys with known entropy, offline images and tables, local files."""

from girih.datasets.dataset import Dataset
from girih.datasets.registry import load, names

__all__ = ["Dataset", "load", "names"]
