"""The version of girih, for the package and for the results that name it."""

__version__ = "0.1.0"
