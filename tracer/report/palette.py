"""Colours that people with any kind of colour vision can tell apart: the set of Okabe and Ito (2008)."""

from __future__ import annotations

from typing import Final

# Without black, which is the text's, and with yellow late: it is faint on white.
COLOURS: Final = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
# For what is summed up as "other".
GREY: Final = "#999999"


def colour(index: int) -> str:
    """The colour of the n-th thing; they recur after seven."""
    return COLOURS[index % len(COLOURS)]
