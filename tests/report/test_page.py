"""The page of a report, and the words on whether to trust a density."""

import math
import re

import pytest

from girih.report import Number, Page, Section, render
from girih.report.rivals import Rival
from girih.report.trust import trust

BAD = "<b>&\"'</b>"


def test_every_text_is_escaped():
    section = Section(BAD, BAD, (BAD,), [(BAD,)])
    html = Page(BAD, BAD, [Number(BAD, BAD, BAD)], [], {BAD: BAD}, BAD, BAD, BAD, BAD, [section]).html()
    assert BAD not in html and html.count("&lt;b&gt;&amp;&#34;&#39;&lt;/b&gt;") == 16
    assert "<script" not in html and html.startswith("<!doctype html>")
    old = render("t", "lead", [Number("a", "1", "what")], [], {"k": "v"}, "code")
    assert "girih" in re.search("<footer>(.*)</footer>", old)[1] and "verdict" not in old.partition("</style>")[2]


@pytest.mark.parametrize(
    ("held_out", "training", "rival", "rows", "words"),
    [
        (2.0, 1.9, 2.5, 500, ["0.50 nats a row better than Other", "1.6 times as likely", "a small gap"]),
        (2.0, 1.5, 2.01, 500, ["as good as Other: a simpler model would do", "a gap to know of"]),
        (2.0, 0.5, 1.0, 500, ["Other is 1.00 nats a row better: use that", "a large gap"]),
        (2.0, 2.1, 40.0, 50, ["no better on the rows of the fit", "With 50 rows all of this is uncertain"]),
    ],
)
def test_trust_is_said_in_words(held_out, training, rival, rows, words):
    text = trust(held_out, training, [Rival("Other", rival, ""), Rival("Worse", rival + 1.0, "")], rows, 4)
    assert all(word in text for word in words) and "Worse" not in text


def test_how_much_likelier_rows_are_is_right():
    for nats in (0.1, 1.0, 5.0, 50.0):
        said = re.search(r"makes each (\S+) times", trust(0.0, 0.0, [Rival("Other", nats, "")], 500, 4))[1]
        power = re.fullmatch(r"10\^(\d+)", said)
        factor = 10.0 ** int(power[1]) if power else float(said.replace(",", ""))
        assert math.log(factor) == pytest.approx(nats, abs=1.2 if power else 0.05)
    assert "better than" not in trust(1.0, 0.9, [], 500, 4)
