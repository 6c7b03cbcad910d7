"""The exceptions that girih raises for input it cannot handle.

All of them are `ValueError`, and each message says what was expected, what came and what to do.
"""


class GirihError(ValueError):
    """Base class: catch this to catch everything that girih refuses."""


class ShapeError(GirihError):
    """An array has the wrong number of dimensions or columns."""


class NotNumericError(ShapeError, TypeError):
    """An array holds text, dates, complex numbers or other objects where real numbers are needed."""


class NonFiniteError(GirihError):
    """An array holds infinite values, or NaN where NaN does not mean "missing"."""


class EmptyDataError(GirihError):
    """There are no rows, or no observed entries, to work with."""


class ParameterError(GirihError):
    """An option has a value outside its domain."""


class DeviceError(ParameterError):
    """A tensor is on another device than the parameters that it is to be used with."""


class UnsupportedLayerError(GirihError):
    """A network holds a layer that is not affine or piecewise linear."""


class LatentDimensionError(GirihError):
    """The latent dimension is too large for the exact method that was asked for."""


class NoiseError(GirihError):
    """A noise or prior covariance is not symmetric positive definite."""


class ModelFileError(GirihError):
    """A model folder is damaged, foreign, or written by a newer girih."""


class CheckpointError(ParameterError, ModelFileError):
    """A checkpoint belongs to a run with other data or settings."""


class DataSourceError(GirihError):
    """A data set is unknown, or its file cannot be read."""


class StreamError(DataSourceError):
    """A stream of rows changed between passes, or a block of it cannot be read; the message names the block."""


class ProcessError(GirihError):
    """A process of a run of several has ended, or does not answer."""


class CellLimitError(GirihError):
    """A partition has more cells than `max_cells` allows."""


class DerivativeError(GirihError):
    """A derivative was asked for that is not available."""


class NoClosedFormError(GirihError, NotImplementedError):
    """A `NoClosedFormError` says that a quantity is not known exactly, and what stands in for it."""


class SingularInformationError(GirihError):
    """A Fisher information that must be inverted is singular: some direction of z is not determined."""


class MissingExtraError(ModuleNotFoundError, GirihError):
    """A package that only some of girih needs is not installed; the message names the extra that installs it."""
