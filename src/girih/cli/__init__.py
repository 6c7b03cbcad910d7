"""The command line: `girih fit`, `select`, `score`, `sample`, `impute`, `info`, `datasets` and `reproduce`."""

from girih.cli.app import app, main

__all__ = ["app", "main"]
