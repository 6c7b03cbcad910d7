"""Tables in blocks: the numbers of rows in memory, labels that no sample shows, and what one pass comes to."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import girih
from effort import FEWEST, try_few_settings
from girih.errors import EmptyDataError, NotNumericError, ParameterError, StreamError
from girih.streams import Blocks, Processes
from girih.tables import choice, fitter, stepwise, streamed
from girih.tables.basis import Basis
from girih.tables.columns import Columns
from girih.tables.finished import Finished
from girih.tables.fitting import TOL, Expected, Prior, fit, m_step
from girih.tables.member import Member
from girih.tables.mixture import Mixture, Rows, log_prob, statistics
from girih.tables.scales import Scales
from girih.tables.streamed import Passes, Start, ascend
from girih.tables.survey import Survey, Witnesses

ROWS = 1200


def table(rows=ROWS, seed=0):
    """Two related numbers, one with holes, and a label that shows once, in the last row but two."""
    rng = np.random.default_rng(seed)
    t = rng.normal(size=rows)
    frame = pd.DataFrame({"a": t + 0.2 * rng.normal(size=rows), "b": t**2 + 0.3 * rng.normal(size=rows)})
    frame["c"] = np.where(t + rng.normal(size=rows) > 0, "x", "y")
    frame.loc[rng.random(rows) < 0.1, "a"] = np.nan
    frame.loc[rows - 3, "c"] = "rare"
    frame.loc[4, :] = None
    return frame


@pytest.fixture
def small_samples(monkeypatch):
    """Samples that are smaller than the table, and few settings to choose from."""
    try_few_settings(monkeypatch, **FEWEST)
    for module in (streamed, stepwise):
        monkeypatch.setattr(module, "SAMPLE", 500)
    for module in (streamed, stepwise):
        monkeypatch.setattr(module, "HELD_OUT", 100)
    monkeypatch.setattr(stepwise, "_BATCH", 100)
    monkeypatch.setattr(streamed, "SAMPLED", 400)
    for module in (choice, fitter):
        monkeypatch.setattr(module, "SCREENED", 200)


def in_files(folder, frame):
    for part, rows in enumerate(np.array_split(np.arange(len(frame)), 3)):
        pq.write_table(pa.Table.from_pandas(frame.iloc[rows]), folder / f"{part}.parquet", row_group_size=200)
    return folder


def line(levels, seed=0):
    """A mixture of two curves in two columns, and its scales."""
    generator = torch.Generator().manual_seed(seed)
    basis = Basis.line(3)
    maps = torch.randn(2, 2, basis.size, generator=generator, dtype=torch.float64)
    eye = torch.eye(2, dtype=torch.float64)
    tables = tuple(eye.new_full((2, size), 1.0 / size) for size in levels)
    mixture = Mixture(basis, eye.new_full((2,), 0.5), maps, torch.stack((eye, 0.5 * eye)), tables)
    still = eye.new_zeros(2)
    return Member(mixture, Scales(still.bool(), still, still + 1.0, still, still + 1.0))


def test_blocks_raise_the_likelihood_as_rows_in_memory_do():
    frame = table().drop(index=4)
    columns = Columns.learn(frame)
    member, prior = line(columns.levels), Prior(torch.full((2,), 1e-6, dtype=torch.float64))
    other, tied = line(columns.levels, 1), Prior(prior.least, "diagonal", True)
    passes = Passes(Blocks(frame, rows=170), columns, {}, Processes())
    shown = []
    settings = [choice.Setting(2, kinks=3), choice.Setting(2, "diagonal", True, kinks=3)]
    begun = Start(settings, [member, other], [prior, tied], lambda final: None)
    nothing = Finished(None, None, {})
    found = ascend(begun, passes, nothing, shown.append)
    x, codes = columns.read(frame)
    for one, start, held_by in zip(found, (member, other), (prior, tied), strict=True):
        alone = fit(start.mixture, Rows.of(x, codes), held_by, fitter.RESUMED, TOL)[0]
        for name in ("weights", "maps", "noise"):
            assert torch.allclose(getattr(one.mixture, name), getattr(alone, name), rtol=1e-8, atol=1e-9), name
    assert shown == list(range(1, len(shown) + 1))


def test_a_step_from_expected_sums_is_the_step_from_statistics_and_sums_move_with_the_curves():
    frame = table().drop(index=4)
    columns = Columns.learn(frame)
    mixture, prior = line(columns.levels).mixture, Prior(torch.full((2,), 1e-6, dtype=torch.float64))
    x, codes = columns.read(frame)
    rows = Rows.of(torch.where(x.isnan(), 0.3, x), codes)  # without holes the sums can be made from their definition
    found = statistics(mixture, rows)
    sums = Expected.of(mixture, found)
    moved = m_step(mixture, found, prior)
    step = moved.maps - mixture.maps
    after = sums.about(step)
    # shares of components and posteriors are those of `mixture`; the residuals are about the new curves
    grid = torch.linspace(-9.0, 9.0, 3001, dtype=torch.float64)
    phi = mixture.basis.values(grid)
    log_prior = -0.5 * grid**2
    for k in range(2):
        mean = phi @ mixture.maps[k].mT
        noise = torch.distributions.MultivariateNormal(torch.zeros(2, dtype=torch.float64), mixture.noise[k])
        each = noise.log_prob(rows.x[:, None] - mean) + log_prior
        share = torch.softmax(each, 1)
        log_k = log_prob(mixture, rows, by_component=True)
        place = torch.empty_like(rows.order)
        place[rows.order] = torch.arange(len(rows))
        r = (log_k - log_k.logsumexp(1, keepdim=True)).exp()[rows.order][:, k]
        residual = rows.x[:, None] - phi @ moved.maps[k].mT
        cross = torch.einsum("n,ng,ngd,gf->df", r, share, residual, phi)
        scatter = torch.einsum("n,ng,ngd,nge->de", r, share, residual, residual)
        assert torch.allclose(after.cross[k], cross, rtol=2e-3, atol=0.5)
        assert torch.allclose(after.scatter[k], scatter, rtol=2e-3, atol=0.5)


def test_a_stream_is_fitted_as_a_table(tmp_path, small_samples):
    frame = table()
    tm = girih.TableModel(random_state=0).fit(in_files(tmp_path, frame))
    assert tm.columns_["c"].levels == ("rare", "x", "y")  # seen in one row, which no sample needs to hold
    assert list(tm.feature_names_in_) == ["a", "b", "c"]
    fresh = table(800, seed=1)
    whole = girih.TableModel(random_state=0).fit(frame)
    assert tm.score(fresh) == pytest.approx(whole.score(fresh), abs=0.1)
    assert tm.held_out_score_ == pytest.approx(tm.score(fresh), abs=0.5)
    assert tm.best_.score(fresh) > tm.score(fresh) - 0.3
    assert tm.transform(fresh).shape == (800, 1) and tm.sample(3, random_state=0).num_rows == 3
    again = girih.TableModel(random_state=0).fit([frame[:800], frame[800:]])
    assert again.columns_.levels == tm.columns_.levels


def test_rows_that_are_held_out_are_those_that_judge(tmp_path, small_samples):
    frame, seed = table(), int(np.random.RandomState(0).randint(2**31 - 1))
    blocks = Blocks(in_files(tmp_path, frame))
    tm = girih.TableModel(random_state=0).fit(blocks)
    drawn = Survey.of(blocks, None, 500, seed, Processes()).drawn
    held = drawn.rows.to_pandas()[drawn.least(100)]
    assert tm.score(held.dropna(how="all")) == pytest.approx(tm.held_out_score_, abs=1e-9)


def test_a_stream_that_a_sample_holds_is_a_table_in_memory(monkeypatch):
    try_few_settings(monkeypatch, **FEWEST)
    frame = table(120)
    one = girih.TableModel(random_state=0).fit(frame)
    two = girih.TableModel(random_state=0).fit([frame[:50], frame[50:]])
    three = girih.TableModel(random_state=0).fit(iter([frame[:50], frame[50:]]))
    assert np.array_equal(one.score_samples(frame), two.score_samples(frame))
    assert np.array_equal(one.score_samples(frame), three.score_samples(frame))


def test_one_pass_approaches_all_rows(small_samples):
    frame, fresh = table(2500), table(1000, seed=1)
    frame.loc[0, "c"] = "rare"  # a label must show among the first rows
    parts = [frame[i : i + 125] for i in range(0, 2500, 125)]
    scores = [girih.TableModel(random_state=0).fit(iter(parts[:n])).score(fresh) for n in (5, 20)]
    whole = girih.TableModel(random_state=0).fit(parts).score(fresh)
    assert scores[0] < scores[1] and abs(whole - scores[1]) < 0.05


def test_witnesses_are_the_first_rows_with_an_entry():
    first = pd.DataFrame({"n": [1.0, 1.0, 2.0], "t": ["a", None, "a"]})
    second = pd.DataFrame({"n": [2.0, 3.0, 4.0], "t": ["b", "a", "c"]})
    witnesses = Witnesses()
    for number, block in enumerate((first, second)):
        witnesses.add(number, block)
    assert [one.place.tolist() for one in witnesses.found] == [[0, 2], [0, 1, 2]]
    merged = Witnesses()
    for one in witnesses.found:
        merged.add(int(one.block[0]), one.rows)
    assert [len(one) for one in merged.found] == [2, 3]


def test_what_is_refused(tmp_path, small_samples):
    frame = table()
    with pytest.raises(NotNumericError, match="block 1 of X: column 'a' of X"):
        girih.TableModel().fit([frame, frame.assign(a=pd.Timestamp("2020-01-01"))])
    with pytest.raises(ParameterError, match="no sample_weight"):
        girih.TableModel().fit([frame], sample_weight=np.ones(ROWS))
    with pytest.raises(EmptyDataError, match="no rows"):
        girih.TableModel().fit([frame[:0]])
    with pytest.raises(StreamError, match="no rows"):
        girih.TableModel().fit(iter([]))
    parts = [frame[:600], frame[600:1190], frame[1190:].assign(c="new")]
    with pytest.raises(ParameterError, match="block 2 of X: column 'c' holds 'new'"):
        girih.TableModel(random_state=0).fit(iter(parts))
