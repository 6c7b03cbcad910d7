"""The page of a table in a real browser, against what the model says."""

import numpy as np
import pytest

import girih
from effort import FEWEST, try_few_settings
from girih.explorer import Wanted, explorer_of

DATES = Wanted(dates=frozenset({"a"}))


def test_a_table_shows_the_densities_and_conditionals_of_the_model(small_table, opened):
    model, frame, explorer = small_table
    with opened(explorer) as page:
        x, y = 0.4, -0.2
        page.ask("explorer.setPair(0, 1);")
        page.page.mouse.move(*page.place(x, y))
        page.settle()
        text = page.page.locator(".card").inner_text()
        bands = page.ask("return [explorer.pair.places(), [...explorer.pair.bands]];")
        grid = page.ask(
            """const { pair } = explorer; const n = pair.spec.places;
            const at = (axis, k) => axis.low + k / (n - 1) * (axis.high - axis.low);
            const places = [[3, 7], [20, 11], [30, 29]].map(([i, j]) => [at(pair.x, i), at(pair.y, j)]);
            return places.map(([x, y]) => [x, y, pair.logP(x, y)]);"""
        )
        turned = page.ask("explorer.setPair(1, 0); return [explorer.pair.places(), [...explorer.pair.bands]];")
        title = page.page.locator(".sheet thead").inner_html()
    assert "b given a" in text and "90 % interval" in text
    for names, (places, quantiles) in ((("a", "b"), bands), (("b", "a"), turned)):
        known = np.array(quantiles).reshape(3, -1)
        for k in (3, 9, 16):
            given = model.condition({names[0]: places[k]}).marginal(names[1])
            assert np.allclose(known[:, k], given.quantile([0.05, 0.5, 0.95])[:, 0, 0], rtol=1e-5, atol=1e-6)
    for u, v, log_p in grid:
        rows = frame.iloc[:1].assign(a=u, b=v, group=None, **{"<i>c</i>": np.nan})
        assert log_p == pytest.approx(float(model.score_samples(rows)[0]), abs=1e-5)
    assert "&lt;i&gt;c" in title  # names are text


def test_strange_rows_come_first_with_their_reasons(small_table, opened):
    model, frame, explorer = small_table
    nats = model.explain(frame, held_out=True)
    with opened(explorer) as page:
        order = page.ask("return [...explorer.sheet.order];")
        page.page.locator(".scroll").focus()
        page.page.keyboard.press("Home")
        page.settle()
        text = page.page.locator(".card").inner_text()
        log_p = page.ask("return [...explorer.columns[1].values];")
        curves = page.page.locator(".card canvas.density").count()
        along = page.ask(
            """const at = explorer.axes.findIndex((axis) => axis.name === "b");
            const { count, low, high } = explorer.axes[at];
            const start = (explorer.strange.get(4).place * explorer.axes.length + at) * count;
            return [low, high, [...explorer.payload.curves.logP.subarray(start, start + count)]];"""
        )
    assert order[0] == 4 and "Row 4" in text and "b is 6" in text and curves >= 1
    assert np.allclose(log_p, model.score_held_out(frame), rtol=1e-5, atol=1e-4)
    low, high, log_density = along
    entry = np.interp(6.0, np.linspace(low, high, len(log_density)), log_density)
    assert entry == pytest.approx(nats[4, 1], abs=0.05)  # between two places of the grid
    assert np.trapezoid(np.exp(log_density), np.linspace(low, high, len(log_density))) == pytest.approx(1.0, abs=0.02)


def test_imputed_entries_have_their_intervals(small_table, opened):
    model, frame, explorer = small_table
    given = model.condition(frame.iloc[[10, 12]])
    low, high = given.quantile([0.05, 0.95])
    with opened(explorer) as page:
        shown = page.ask(
            """const said = (column, row) => [column.text(row), column.sure(row), column.mark(row)];
            return [10, 12].flatMap((row) => [explorer.own[0], explorer.own[2]].map((column) => said(column, row)));"""
        )
    mean = float(given.mean[0, 0])
    chance = {label: float(p[1]) for label, p in given.probabilities("group").items()}
    best = max(chance, key=chance.get)
    number, sure, mark = shown[0]
    assert float(number.replace("−", "-")) == pytest.approx(mean, rel=1e-3) and mark == "filled"
    ends = [float(word.replace("−", "-")) for word in sure.split("between ")[1].split(" and ")]
    assert ends == pytest.approx([low[0, 0], high[0, 0]], rel=1e-3)
    assert shown[3] == [best, f"missing; probability {round(100 * chance[best])} %", "filled"]
    assert shown[1][1] == "" and shown[2][2] != "filled"


def test_dates_are_shown_as_such(small_table, opened, monkeypatch):
    try_few_settings(monkeypatch, **FEWEST)
    frame = small_table[1]
    days = frame.assign(a=np.arange(60.0) + 19000.0)
    days.loc[10, "a"] = np.nan
    explorer = explorer_of(girih.TableModel(random_state=0, n_folds=2).fit(days[["a", "b"]]), days[["a", "b"]], DATES)
    with opened(explorer) as page:
        text, filled, tick = page.ask(
            "return [explorer.own[0].text(3), explorer.own[0].sure(10), explorer.chart.tickText(0, 19003)];"
        )
    assert text == "2022-01-11" and tick == "2022-01" and filled.count("-") == 4


def test_tables_with_few_columns_of_numbers(opened, monkeypatch):
    try_few_settings(monkeypatch, **FEWEST)
    pandas = pytest.importorskip("pandas")
    rng = np.random.default_rng(1)
    kind = np.where(rng.random(40) < 0.5, "x", "y")
    number = np.where(rng.random(40) < 0.4, 0.0, rng.normal(size=40))  # zeros are atoms
    for frame in (pandas.DataFrame({"kind": kind, "n": number}), pandas.DataFrame({"kind": kind, "other": kind[::-1]})):
        model = girih.TableModel(random_state=0, n_folds=2).fit(frame)
        with opened(girih.explore(model, frame, path=None)) as page:
            page.page.locator(".sheet tbody tr:not(.gap)").first.click()
            page.settle()
            assert "Row " in page.page.locator(".card").inner_text()
            assert page.page.locator(".stage canvas.density").count() == int("n" in frame)
