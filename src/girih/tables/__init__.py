"""The exact joint model of an incomplete table."""

from girih.tables.columns import Columns
from girih.tables.conditioned import TableConditional
from girih.tables.imputer import DGNImputer
from girih.tables.member import Ensemble, Member
from girih.tables.mixture import Mixture
from girih.tables.model import TableModel
from girih.tables.outliers import DGNOutlierDetector
from girih.tables.setting import Setting

__all__ = [
    "Columns",
    "DGNImputer",
    "DGNOutlierDetector",
    "Ensemble",
    "Member",
    "Mixture",
    "Setting",
    "TableConditional",
    "TableModel",
]
