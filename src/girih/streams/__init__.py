"""Rows without end: tables in blocks, samples of them in one pass, sums over them in one process or several."""

from girih.streams.blocks import Blocks, Stream, is_stream
from girih.streams.containers import count, joined, taken
from girih.streams.processes import Processes
from girih.streams.sample import Drawn, Sample
from girih.streams.sums import Total

__all__ = ["Blocks", "Drawn", "Processes", "Sample", "Stream", "Total", "count", "is_stream", "joined", "taken"]
