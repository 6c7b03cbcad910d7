"""Runs that are killed, interrupted or finished go on to the same numbers, and others are refused."""

import signal

import pytest
import torch

from girih.errors import ModelFileError, ParameterError
from girih.training import fit_gradient

from .helpers import X, check_same_history, fit, line, noisy, same, weights


class CrashError(Exception):
    pass


@pytest.mark.parametrize("batch_size", [None, 5])
@pytest.mark.parametrize("at", [1, 26, 27, 61])
def test_a_killed_run_goes_on_to_the_same_numbers(tmp_path, at, batch_size):
    options = {"batch_size": batch_size, "max_epochs": 100, "record_every": 20}
    uninterrupted = line()
    expected = fit(uninterrupted, **options)

    calls = []

    def crashing(model, x):
        calls.append(1)
        if len(calls) == at:
            raise CrashError
        return noisy(model, x)

    path = tmp_path / "new" / "run.ckpt"
    with pytest.raises(CrashError):
        fit(line(), crashing, checkpoint=path, checkpoint_seconds=0.0, **options)
    resumed = line()
    torch.rand(7)  # the state of the global generator must not matter
    run = fit(resumed, checkpoint=path, checkpoint_seconds=0.0, **options)
    check_same_history(run.history, expected.history)
    assert same(weights(resumed), weights(uninterrupted))
    assert [file.name for file in path.parent.iterdir()] == ["run.ckpt"]


def test_a_finished_run_is_not_repeated_and_can_be_extended(tmp_path):
    path, whole = tmp_path / "run.ckpt", line()
    expected = fit(whole, max_epochs=90, record_every=20)
    first = fit(line(), max_epochs=45, record_every=20, checkpoint=path)

    def never(model, x):
        raise AssertionError("no step should be taken")

    again = line()
    check_same_history(fit(again, never, max_epochs=45, record_every=20, checkpoint=path).history, first.history)
    extended = line()
    run = fit(extended, max_epochs=90, record_every=20, checkpoint=path)
    check_same_history(run.history, expected.history)
    assert same(weights(extended), weights(whole))


def test_a_run_that_ran_out_of_patience_is_not_repeated(tmp_path):
    path, options = tmp_path / "run.ckpt", {"lr": 1e-9, "record_every": 5, "patience": 2, "max_epochs": 500}
    loss = lambda model, x: model(x).square()  # noqa: E731
    first = fit(line(), loss, checkpoint=path, **options)
    again = fit(line(), loss, checkpoint=path, **options)
    assert first.ended == again.ended == "patience"
    check_same_history(first.history, again.history)


@pytest.fixture
def ctrl_c():
    """Python's own handler: a shell starts background jobs with the signal ignored."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_ends_the_run_cleanly_and_it_goes_on_later(tmp_path):
    path, whole = tmp_path / "run.ckpt", line()
    expected = fit(whole, max_epochs=60, record_every=10)
    before = signal.getsignal(signal.SIGINT)
    calls = []

    def interrupting(model, x):
        calls.append(1)
        if len(calls) == 33:
            signal.raise_signal(signal.SIGINT)
        return noisy(model, x)

    model = line()
    run = fit(model, interrupting, max_epochs=60, record_every=10, checkpoint=path)
    assert (run.ended, run.steps) == ("interrupted", 33)
    assert run.history["step"].tolist() == [0, 10, 20, 30, 33]
    assert signal.getsignal(signal.SIGINT) is before
    check_same_history(fit(model, max_epochs=60, record_every=10, checkpoint=path).history, expected.history)
    assert same(weights(model), weights(whole))


def test_an_interrupt_from_elsewhere_stays_one():
    before = signal.getsignal(signal.SIGINT)

    def loss(model, x):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(line(), loss)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_terminated_run_saves_and_exits_with_its_status(tmp_path):
    path, whole = tmp_path / "run.ckpt", line()
    expected = fit(whole, max_epochs=60, record_every=10)
    calls = []

    def terminated(model, x):
        calls.append(1)
        if len(calls) == 12:
            signal.raise_signal(signal.SIGTERM)
        return noisy(model, x)

    with pytest.raises(SystemExit) as caught:
        fit(line(), terminated, max_epochs=60, record_every=10, checkpoint=path)
    assert caught.value.code == 143
    assert path.exists()
    resumed = line()
    check_same_history(fit(resumed, max_epochs=60, record_every=10, checkpoint=path).history, expected.history)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"lr": 0.02}, "lr=0.01, but now lr=0.02"),
        ({"batch_size": 3}, "batch_size=None, but now batch_size=3"),
        ({"seed": 1}, "seed=0, but now seed=1"),
        ({"record_every": 7}, "record_every"),
        ({"settings": {"kind": "other"}}, "kind"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, change, says):
    path = tmp_path / "run.ckpt"
    fit(line(), max_epochs=5, checkpoint=path)
    with pytest.raises(ParameterError, match=says):
        fit(line(), **{"max_epochs": 9, "checkpoint": path, **change})


def test_a_checkpoint_of_other_data_or_another_model_is_refused(tmp_path):
    path = tmp_path / "run.ckpt"
    fit(line(), max_epochs=5, checkpoint=path)
    with pytest.raises(ParameterError, match="other data"):
        fit_gradient(line(), X + 1.0, loss=noisy, lr=0.01, checkpoint=path, progress=False)
    other = line()
    with torch.no_grad():
        other.bias.fill_(9.0)
    with pytest.raises(ParameterError, match="other initial parameters"):
        fit(other, max_epochs=9, checkpoint=path)
    assert other.bias.item() == 9.0


def test_a_damaged_or_foreign_checkpoint_is_refused(tmp_path):
    path = tmp_path / "run.ckpt"
    fit(line(), max_epochs=5, checkpoint=path)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ModelFileError, match="not a readable checkpoint"):
        fit(line(), checkpoint=path)
    path.write_text("hello")
    with pytest.raises(ModelFileError, match="not a readable checkpoint"):
        fit(line(), checkpoint=path)
    torch.save({"format": "girih-training-2", "weights": torch.zeros(1)}, path)  # as version 0.1.0 wrote them
    with pytest.raises(ModelFileError, match=r"not a checkpoint of this version .* 0\.1\.0 cannot be continued"):
        fit(line(), checkpoint=path)
    torch.save(line(), path)  # a pickled object: refused, not run
    with pytest.raises(ModelFileError, match="not a checkpoint of this version"):
        fit(line(), checkpoint=path)
