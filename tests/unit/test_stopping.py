"""Signals ask to stop, in words; only a second Ctrl-C breaks off."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tracer.cli.stopping import StopSignals

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """Whatever a test does, the signals are afterwards as they were."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_nothing_was_asked() -> None:
    with StopSignals() as signals:
        assert signals.requested() is None


@pytest.mark.parametrize(
    ("number", "words"),
    [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM"), (signal.SIGHUP, "the terminal was closed")],
)
def test_a_signal_asks_to_stop(number: signal.Signals, words: str) -> None:
    with StopSignals() as signals:
        signal.raise_signal(number)
        assert signals.requested() == words
    assert signals.requested() == words, "also afterwards"


@pytest.mark.parametrize("first", SIGNALS)
def test_ctrl_c_after_any_signal_breaks_off(first: signal.Signals) -> None:
    with StopSignals():
        signal.raise_signal(first)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGHUP])
def test_other_signals_may_come_again(second: signal.Signals) -> None:
    with StopSignals() as signals:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(second)
        assert signals.requested() is not None


def test_the_handlers_before_come_back() -> None:
    def own(*_: object) -> None: ...

    signal.signal(signal.SIGTERM, own)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(KeyError), StopSignals():
        assert signal.getsignal(signal.SIGTERM) is not own
        raise KeyError
    assert [signal.getsignal(number) for number in SIGNALS] == before


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_what_nohup_or_the_shell_had_ignored_stays_ignored(number: signal.Signals) -> None:
    signal.signal(number, signal.SIG_IGN)
    with StopSignals() as signals:
        signal.raise_signal(number)
        assert signals.requested() is None
