"""Every covariance of a noise or a prior can do this; and one is made of what users pass."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from girih._arrays import as_tensor, check_finite
from girih.errors import NoiseError, ParameterError, ShapeError

Pair = tuple[Tensor, Tensor]


class Covariance(ABC):
    r"""It is a covariance `C = L L^T` of D coordinates, stored as no more numbers than its kind has.

    You would make one to give a `girih.DGN` a low-rank noise, or read one (`dgn.noise_covariance`) to compute with
    the noise of a model whatever its kind:

    - `Covariance.scalar(v, D)`: `C = v I`,
    - `Covariance.diagonal(v)`: `C = diag(v)`,
    - `Covariance.low_rank(F, v)`: `C = F F^T + diag(v)`, F `(D, r)`; no `D x D` matrix is formed to compute with it,
    - `Covariance.full(C)`.

    It is a value: nothing changes it. Log-determinants and constants are in nats.

    Attributes:
        kind: "scalar", "diagonal", "low_rank" or "full".
        dim: D.
        tensors: the numbers that it is stored as: a variance `()`, variances `(D,)`, a matrix `(D, D)`, or variances
            `(D,)` and a factor `(D, r)`.

    Example:
        >>> import girih, torch
        >>> noise = girih.Covariance.low_rank([[1.0], [2.0], [0.5]], [0.1, 0.2, 0.3])
        >>> noise.kind, noise.dim, noise.parameter_count
        ('low_rank', 3, 6)
        >>> torch.allclose(noise.solve(noise.matrix), torch.eye(3).double())
        True
    """

    kind: ClassVar[str]
    dim: int
    tensors: tuple[Tensor, ...]
    _kinds: ClassVar[dict[str, type[Covariance]]] = {}

    def __init_subclass__(cls) -> None:
        """Each kind is known by its name, so that what is in this file can make them all."""
        if "kind" in vars(cls):
            Covariance._kinds[cls.kind] = cls

    # How one is made ------------------------------------------------------------------------------------------------

    @staticmethod
    def of(value: object, dim: int, name: str = "noise", device: torch.device | None = None) -> Covariance:
        """The covariance that a user means: a `Covariance`, a variance, `(D,)` variances or a `(D, D)` matrix.

        Args:
            value: an array of one of these shapes; tensors that ask for gradients keep them.
            dim: D.
            name: of the argument, for messages.
            device: where its tensors shall be.

        Raises:
            ShapeError, NonFiniteError, NoiseError: it is not a positive definite covariance of D coordinates.
        """
        if isinstance(value, Covariance):
            if value.dim != dim:
                raise ShapeError(f"{name} is a covariance of {value.dim} coordinates, but D = {dim}")
            return value.with_tensors(tuple(as_tensor(part, name, device) for part in value.tensors)).checked(name)
        tensor = as_tensor(value, name, device)
        if tensor.ndim == 1 and len(tensor) == 1 and dim != 1:
            tensor = tensor[0]
        if tuple(tensor.shape) not in {(), (dim,), (dim, dim)}:
            raise ShapeError(
                f"{name} must be a scalar variance, ({dim},) variances or a ({dim}, {dim}) covariance "
                f"for D = {dim}; got shape {tuple(tensor.shape)}"
            )
        return Covariance.from_tensors((tensor,), dim).checked(name)

    @staticmethod
    def from_tensors(tensors: tuple[Tensor, ...], dim: int) -> Covariance:
        """The covariance of D coordinates that is stored as these `tensors`, unchecked."""
        kind = "low_rank" if len(tensors) == 2 else ("scalar", "diagonal", "full")[tensors[0].ndim]
        return Covariance._kinds[kind](tensors, dim)

    @staticmethod
    def scalar(variance: float | Tensor, dim: int) -> Covariance:
        """`variance I` of `dim` coordinates."""
        return Covariance.of(as_tensor(variance, "variance").reshape(()), dim, "variance")

    @staticmethod
    def diagonal(variances: object) -> Covariance:
        """`diag(variances)`, of variances `(D,)`."""
        value = as_tensor(variances, "variances").reshape(-1)
        return Covariance.from_tensors((value,), len(value)).checked("variances")

    @staticmethod
    def full(matrix: object) -> Covariance:
        """The covariance with this `(D, D)` matrix."""
        value = as_tensor(matrix, "matrix")
        if value.ndim != 2 or value.shape[0] != value.shape[1]:
            raise ShapeError(f"matrix must be a (D, D) covariance; got shape {tuple(value.shape)}")
        return Covariance.from_tensors((value,), len(value)).checked("matrix")

    @staticmethod
    def low_rank(factor: object, variances: object) -> Covariance:
        """`factor factor^T + diag(variances)`: what few hidden causes share, and what each coordinate has of its own.

        Args:
            factor: `(D, r)`, `1 <= r <= D`.
            variances: `(D,)`, positive.

        Raises:
            ShapeError, NonFiniteError, NoiseError.
        """
        variance, value = as_tensor(variances, "variances"), as_tensor(factor, "factor")
        if (
            variance.ndim != 1
            or value.ndim != 2
            or len(value) != len(variance)
            or not 1 <= value.shape[1] <= len(value)
        ):
            raise ShapeError(
                "a low-rank covariance takes a factor (D, r), r from 1 to D, and variances (D,); got shapes "
                f"{tuple(value.shape)} and {tuple(variance.shape)}"
            )
        return Covariance.from_tensors((variance, value), len(value)).checked("variances")

    @staticmethod
    def prior(value: object, dim: int, device: torch.device | None = None) -> Tensor:
        """The `(S, S)` covariance matrix of a latent prior, of a variance, such a matrix or `None` for the identity.

        Raises:
            ShapeError, NonFiniteError, NoiseError: it is not a positive definite covariance of `dim` latents.
        """
        tensor = as_tensor(1.0 if value is None else value, "prior", device)
        if tensor.ndim < 2 and tensor.numel() == 1:
            tensor = tensor.reshape(()) * torch.eye(dim, dtype=torch.float64, device=tensor.device)
        if tuple(tensor.shape) != (dim, dim):
            raise ShapeError(
                f"prior must be an ({dim}, {dim}) covariance for S = {dim}; got shape {tuple(tensor.shape)}"
            )
        return Covariance.from_tensors((tensor,), dim).checked("prior").tensors[0]

    def __init__(self, tensors: tuple[Tensor, ...], dim: int) -> None:
        self.tensors, self.dim = tensors, dim

    def with_tensors(self, tensors: tuple[Tensor, ...]) -> Covariance:
        """A covariance of the same kind with other numbers."""
        return type(self)(tensors, self.dim)

    def detached(self) -> Covariance:
        """The same numbers without their history."""
        return self.with_tensors(tuple(part.detach() for part in self.tensors))

    def checked(self, name: str) -> Covariance:
        """Itself, once it is known to be finite and positive definite; `name` is for messages."""
        for part in self.tensors:
            check_finite(part.detach(), name)
        self._check_definite(name)
        return self

    def _check_definite(self, name: str) -> None:
        """Refuse what is not positive definite; for kinds whose first tensor is variances, those that are not > 0."""
        value = self.tensors[0].detach()
        if not (value > 0).all():
            raise NoiseError(
                f"{name} must be a positive variance, got {value.min().item():g}; variances, not deviations"
            )

    def to(self, kind: str, rank: int = 1) -> Covariance:
        """The nearest covariance of another kind, where a fit of that kind may start; itself where it is of that kind.

        Of a full covariance a simpler one keeps the variances, of several variances a scalar keeps the mean; a
        low-rank one of a full one is its factor analysis, and of a diagonal one has the factor 0, from which `m_step`
        finds the way.

        Raises:
            ParameterError: there is no such kind.
        """
        if kind not in self._kinds:
            raise ParameterError(f"kind must be one of {', '.join(sorted(self._kinds))}; got {kind!r}")
        if kind == self.kind:
            return self
        variances = self.variances
        if kind == "scalar":
            return self._kinds[kind]((variances.mean(),), self.dim)
        if kind == "diagonal":
            return self._kinds[kind]((variances.clone(),), self.dim)
        if kind == "full":
            return self._kinds[kind]((self.matrix,), self.dim)
        start = self._kinds[kind]((variances.clone(), variances.new_zeros(self.dim, rank)), self.dim)
        if self.kind != "full":
            return start
        return start.m_step(self.matrix, torch.ones_like(variances[0]), 1e-6 * variances)

    # What is known of it --------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """`DGNEstimator(noise=...)` knows this kind by this name."""
        return self.kind

    @property
    @abstractmethod
    def variances(self) -> Tensor:
        """The diagonal of C, `(D,)`."""

    @property
    def mean_variance(self) -> Tensor:
        """The mean of the diagonal of C, `()`."""
        return self.variances.mean()

    @property
    @abstractmethod
    def matrix(self) -> Tensor:
        """C, `(D, D)`."""

    @property
    @abstractmethod
    def parameter_count(self) -> int:
        """The kind has so many free parameters."""

    @property
    def width(self) -> int:
        """A factor of C that is made for one row's observed entries has so many numbers for each coordinate."""
        return 1

    @property
    def condition(self) -> float:
        """Whitening makes the relative error of a row at most so many times larger than rounding."""
        return 1.0

    @property
    @abstractmethod
    def log_det(self) -> Tensor:
        """`log det C`, nats."""

    @property
    def constant(self) -> Tensor:
        """`-1/2 log det(2 pi C)`, nats: the log-density at the mean."""
        return -0.5 * (self.dim * math.log(2.0 * math.pi) + self.log_det)

    def eigen(self) -> tuple[Tensor, Tensor | None]:
        """Eigenvalues `(D,)` and eigenvectors `(D, D)`, or `None` where these are the coordinates themselves."""
        return self.variances, None

    # Products -------------------------------------------------------------------------------------------------------

    @abstractmethod
    def times(self, columns: Tensor) -> Tensor:
        """`C M`, M `(D, M)`."""

    @abstractmethod
    def whiten(self, columns: Tensor) -> Tensor:
        """`L^-1 M`, M `(D, M)`."""

    @abstractmethod
    def whiten_transposed(self, columns: Tensor) -> Tensor:
        """`L^-T M`, M `(D, M)`."""

    @abstractmethod
    def solve(self, columns: Tensor) -> Tensor:
        """`C^-1 M`, M `(D, M)` or a batch of them."""

    @abstractmethod
    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Draws of `N(0, C)`, `(count, D)`, differentiable in the `tensors`."""

    def _normal(self, count: int, size: int, generator: torch.Generator | None) -> Tensor:
        device = self.tensors[0].device
        return torch.randn(count, size, dtype=torch.float64, device=device, generator=generator)

    def mahalanobis(self, scatter: Tensor) -> Tensor:
        """`tr(C^-1 scatter)`, `()`: the sum of the squared Mahalanobis distances of rows with this scatter.

        Args:
            scatter: as the method of that name gives it.
        """
        return self.solve(scatter).diagonal().sum()

    # Parts of it ----------------------------------------------------------------------------------------------------

    @abstractmethod
    def marginal(self, columns: list[int]) -> Covariance:
        """The covariance of some of the coordinates."""

    @abstractmethod
    def restrict(self, mask: Tensor) -> Observed:
        """Rows with their own missing entries see this of it; `mask (n, D)` is true where observed."""

    # Estimation -----------------------------------------------------------------------------------------------------

    @abstractmethod
    def scatter(self, *pairs: Pair) -> Tensor:
        """The sums of `a b^T` over the rows of all pairs (a, b), `(..., D)` each, as far as this kind needs them.

        The kind sees no more of the sum, which is symmetric, than its trace `()`, its diagonal `(D,)`, or all of it.
        """

    @abstractmethod
    def m_step(self, scatter: Tensor, weight: Tensor, floor: Tensor) -> Covariance:
        """The covariance that maximises `-(weight log det C + tr(C^-1 scatter)) / 2`, with variances above a floor.

        For a low-rank covariance it is a step from this one that never lowers it, and at whose fixed point nothing
        near is higher. A conjugate (inverse Wishart or gamma) prior adds its own scatter and weight to the arguments.

        Args:
            scatter: as the method of that name gives it.
            weight: sum of the row weights.
            floor: `()` for a scalar covariance, otherwise `(D,)`; `C - diag(floor)` is kept positive semi-definite.
        """

    @abstractmethod
    def at_least(self, floor: Tensor) -> Covariance:
        """The covariance with its variances, or its eigenvalues in units of the floor, raised to the floor."""

    @abstractmethod
    def with_variances(self, variances: Tensor) -> Covariance:
        """A covariance of this kind without correlations, of variances `(D,)`: their mean for a scalar one."""

    @abstractmethod
    def gradient(self, scatter: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        """The gradient of `-(weight log det C + tr(C^-1 scatter)) / 2` in each of the `tensors`."""

    # Other units and coordinates ------------------------------------------------------------------------------------

    @abstractmethod
    def units(self, scale: Tensor) -> tuple[Tensor, ...]:
        """The `tensors` over `scale x` are these where those over x are 1; `scale (D,)`, equal for a scalar."""

    def rescaled(self, scale: Tensor) -> Covariance:
        """The covariance of `scale x`, `scale (D,)`: a diagonal one of a scalar one if the scales differ."""
        return self.with_tensors(tuple(part * unit for part, unit in zip(self.tensors, self.units(scale), strict=True)))

    @property
    @abstractmethod
    def coordinates(self) -> Tensor:
        """The covariance as a vector without constraints: every vector is a covariance."""

    @abstractmethod
    def from_coordinates(self, vector: Tensor) -> Covariance:
        """The inverse of `coordinates`, for the kind and size of this covariance; differentiable."""

    @abstractmethod
    def information(self, weight: Tensor) -> Tensor:
        """About how much complete rows of this total weight tell of each of the `coordinates`."""

    def __repr__(self) -> str:
        """Shown at the prompt."""
        return f"Covariance({self.kind}, D={self.dim})"


class Observed(ABC):
    """It is a covariance seen through missing entries: one problem for each row, with missing coordinates switched off.

    All patterns of missing entries are handled in one batch: rows and columns of missing coordinates are replaced by
    those of the identity, or have no weight.

    Attributes:
        mask: `(n, D)`, 1 where observed and 0 elsewhere.
    """

    mask: Tensor

    @abstractmethod
    def take(self, index: Tensor) -> Observed:
        """Keep these rows."""

    @abstractmethod
    def whiten(self, columns: Tensor) -> Tensor:
        """`L_n^-1 M_n` with zeros at missing coordinates, for M `(n, D, m)` or `(D, m)`."""

    @abstractmethod
    def solve(self, columns: Tensor) -> Tensor:
        """`C_oo^-1 M_{n, o}` with zeros at missing coordinates, for M `(n, D, m)`."""

    @abstractmethod
    def complete(self, columns: Tensor) -> Tensor:
        """Observed residuals extended to all D coordinates by their conditional mean given the observed ones.

        `M_n -> C_{:, o} C_oo^-1 M_{n, o}` for M `(n, D, m)`.
        """

    @abstractmethod
    def conditional_covariance(self, weight: Tensor) -> Tensor:
        """`sum_n weight_n Cov[e | e_o]`, as far as the kind needs it: see `Covariance.scatter`."""

    @property
    @abstractmethod
    def log_det(self) -> Tensor:
        """`log det C_oo` of each row, `(n,)`."""

    @property
    def constant(self) -> Tensor:
        """`-1/2 log det(2 pi C_oo)` of each row, `(n,)`."""
        return -0.5 * (self.mask.sum(1) * math.log(2.0 * math.pi) + self.log_det)
