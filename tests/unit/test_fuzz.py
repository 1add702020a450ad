"""A sample of what scripts/bench/fuzz runs: no mutated input makes a parser fail, hang or swell."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.unit.fuzzing import Subject, run, subjects

INPUTS = 3000
NAMES = (
    *("ELF: symbols, allocators", ".eh_frame", "perf map", "cached unwind table", "cached debug file"),
    *("mangled name", "debuginfod answer", "DWARF (symbolic)"),
)


@pytest.fixture(scope="module")
def known() -> Iterator[dict[str, tuple[Subject, list[bytes], float]]]:
    try:
        with subjects() as found:
            yield found
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", NAMES)
def test_no_input_does_harm(name: str, known: dict[str, tuple[Subject, list[bytes], float]]) -> None:
    if name not in known:
        pytest.skip("symbolic is not installed (the extra 'lines')")
    subject, seeds, share = known[name]
    outcome = run(subject, seeds, round(INPUTS * share), seed=7)
    assert not [text for text in outcome.results if text.startswith("CRASH")]
    assert len(outcome.results) > 1, "the mutations do not reach the parser"
