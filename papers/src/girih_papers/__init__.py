"""The figures and tables of the papers behind girih, a module for each; `names` lists them and `run` runs one."""

from girih_papers.registry import names, run

__all__ = ["names", "run"]
