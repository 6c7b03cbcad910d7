"""Whether a fitted density is to be trusted, in words: by its held-out NLL beside that of the fit, and of rivals."""

from __future__ import annotations

import math
from collections.abc import Sequence

from girih.report.rivals import Rival

_SAME = 0.02  # nats a row that are nothing to speak of
_SMALL, _LARGE = 0.05, 0.25  # nats a row and column between fresh rows and those of the fit
_FEW = 100  # rows, below which every number here is uncertain


def trust(held_out: float, training: float, rivals: Sequence[Rival], rows: int, columns: int) -> str:
    """Say whether a density is to be trusted.

    Args:
        held_out: NLL on rows that the models had not seen, nats a row.
        training: NLL on the rows of the fit.
        rivals: what others reach on the same folds, if that is known.
        rows: of the fit.
        columns: of the table.

    Example:
        >>> from girih.report.rivals import Rival
        >>> from girih.report.trust import trust
        >>> print(trust(2.0, 1.9, [Rival("One Gaussian", 2.5, "")], 500, 4))
        On rows that it had not seen it is 0.50 nats a row better than One Gaussian, which makes each 1.6 times as \
likely. On the rows of the fit it is 0.10 nats better, a small gap: it has learned the table, not its chance, and may \
be trusted for rows like these.
    """
    words = []
    if rivals:
        best = min(rivals, key=lambda rival: rival.nll)
        gain = best.nll - held_out
        if gain > _SAME:
            words.append(
                f"On rows that it had not seen it is {gain:.2f} nats a row better than {best.name}, which makes each "
                f"{_times(gain)} as likely."
            )
        elif gain > -_SAME:
            words.append(f"On rows that it had not seen it is as good as {best.name}: a simpler model would do.")
        else:
            words.append(
                f"On rows that it had not seen {best.name} is {-gain:.2f} nats a row better: use that, or look into "
                "the columns before you trust this density."
            )
    gap = held_out - training
    each = gap / columns
    if each < _SMALL:
        judged = "a small gap: it has learned the table, not its chance, and may be trusted for rows like these."
    elif each < _LARGE:
        judged = (
            "a gap to know of: scores of rows of the fit flatter them, and the held-out number is the one to quote."
        )
    else:
        judged = (
            "a large gap: much of what it learned is the chance of these rows. More rows, or fewer columns, would help."
        )
    words.append(
        f"On the rows of the fit it is {gap:.2f} nats better, {judged}"
        if gap > 0
        else "It is no better on the rows of the fit than on fresh ones, and may be trusted for rows like these."
    )
    if rows < _FEW:
        words.append(f"With {rows} rows all of this is uncertain.")
    return " ".join(words)


def _times(nats: float) -> str:
    factor = math.exp(min(nats, 700.0))
    return (
        f"{factor:.1f} times"
        if factor < 10.0
        else f"{factor:,.0f} times"
        if factor < 1e6
        else f"10^{nats / math.log(10.0):.0f} times"
    )
