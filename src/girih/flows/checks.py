"""zuko, imported so that torch keeps its checks.

zuko switches off the checks of arguments of all of `torch.distributions`, everybody's, when it is imported; this module
is imported before any other use of zuko and puts the switch back.
"""

from torch.distributions import Distribution

_before = Distribution._validate_args

import zuko  # noqa: E402

Distribution.set_default_validate_args(_before)

__all__ = ["zuko"]
