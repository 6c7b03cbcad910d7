"""The former `girih.experiments`."""

import importlib
import sys

import pytest

import girih
import girih_papers
from girih_papers import settings


def test_it_forwards_to_the_papers():
    with pytest.warns(DeprecationWarning, match="import girih_papers instead"):
        assert girih.experiments is girih_papers
    former = importlib.import_module("girih.experiments")
    with pytest.warns(DeprecationWarning, match=r"import girih_papers\.settings instead"):
        assert former.settings is settings
    assert not hasattr(former, "nothing_of_the_kind")
    vars(girih).pop("experiments", None)  # what the import has put there
    assert "experiments" not in girih.__all__


def test_without_the_papers_it_says_how_to_install_them(monkeypatch):
    monkeypatch.setitem(sys.modules, "girih_papers", None)
    with pytest.raises(ImportError, match=r"`make papers`, or `pip install \./papers`"):
        girih.experiments  # noqa: B018
    with pytest.raises(ImportError, match="`make papers`"):
        from girih.experiments import registry  # noqa: F401
    vars(girih).pop("experiments", None)
