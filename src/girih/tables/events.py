from torch import Tensor

from girih.tables.conditional import Conditional


def probability(given: Conditional, A: Tensor, b: Tensor) -> Tensor:
    raise NotImplementedError
