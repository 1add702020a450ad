"""The page: template, style, script, data, and the policy that lets nothing else run.

The Content-Security-Policy names the hashes of the one script and the one style sheet that are in the page, and
forbids every request, so that a name from the target could neither run nor call home even if it escaped its escaping.
"""

from __future__ import annotations

import base64
import hashlib
import io
from functools import lru_cache
from importlib.resources import files
from string import Template
from typing import TextIO

from tracer import __version__
from tracer.model.report import Report
from tracer.model.timeline import Timeline, timeline_of_ends
from tracer.report.html import sections
from tracer.report.html.markup import Markup, data_block, text
from tracer.report.html.payload import payload
from tracer.report.text import TextReport

# In this order they make one script: units first, what uses them later.
_SCRIPTS = (
    "units.js",
    "data.js",
    "flametree.js",
    "flame.js",
    "flameinput.js",
    "chart.js",
    "table.js",
    "lists.js",
    "main.js",
)
_TEXT_WIDTH = 100
_TEXT_TOP = 20


def write_html(report: Report, file: TextIO, timeline: Timeline | None = None) -> None:
    """Write the report as one self-contained HTML file; the same report gives the same bytes.

    ``timeline`` is what the growth chart draws; without it, the start and the end of the window.
    """
    style, script = _slim(_asset("page.css")), _script()
    page = Template(_asset("page.html")).substitute(
        policy=text(_policy(script, style)),
        version=text(__version__),
        icon=base64.b64encode(files(__package__).joinpath("assets/icon.png").read_bytes()).decode("ascii"),
        title=text(_title(report)),
        style=style,
        script=script,
        data=data_block(payload(report, timeline or timeline_of_ends(report))),
        process=text(f"{_program(report)} ({report.pid})"),
        verdict=sections.verdict(report),
        window=sections.window(report),
        composition=sections.composition(report),
        ledger=sections.ledger(report),
        counters=sections.counters(report),
        no_stacks=sections.no_stacks(report),
        plain_text=_plain_text(report),
    )
    file.write(page)


def _policy(script: str, style: str) -> str:
    """Nothing but this script, this style sheet and pictures within the page; no script may parse markup either."""
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {_hash(script)}",
            f"style-src {_hash(style)}",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    )


def _hash(source: str) -> str:
    """What a policy names a script by: its digest, as text between the tags."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode('ascii')}'"


@lru_cache(maxsize=16)
def _asset(name: str) -> str:
    return files(__package__).joinpath("assets", name).read_text(encoding="utf-8")


@lru_cache(maxsize=1)
def _script() -> str:
    body = "\n".join(_slim(_asset(name)) for name in _SCRIPTS)
    return f'(() => {{\n"use strict";\n{body}\n}})();\n'


def _slim(source: str) -> str:
    """Without indentation, empty lines and lines of comment: a fifth of the script, and nobody misses it there."""
    lines = (line.strip() for line in source.splitlines())
    return "\n".join(line for line in lines if line and not line.startswith("//"))


def _title(report: Report) -> str:
    return f"{report.verdict.kind}: {_program(report)} ({report.pid}), memtrace {report.started:%Y-%m-%d %H:%M}"


def _program(report: Report) -> str:
    """The command's file name: the first word's last part."""
    return (report.command.split() or ["process"])[0].rpartition("/")[2] or "process"


def _plain_text(report: Report) -> Markup:
    """The text form, for whoever reads without scripts or pastes it into a mail."""
    plain = io.StringIO()
    TextReport.from_report(report, top=_TEXT_TOP).render(plain, width=_TEXT_WIDTH)
    # Line by line: line ends are the form's own, whatever else is no visible character was escaped by it.
    return Markup("\n".join(text(line) for line in plain.getvalue().splitlines()))
