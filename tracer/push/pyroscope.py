"""One profile on its way to an endpoint that takes what Pyroscope's ``POST /ingest`` takes: the form, and one attempt.

https://grafana.com/docs/pyroscope/latest/configure-server/about-server-api/
"""

from __future__ import annotations

import http.client
import json
import secrets
import urllib.error
import urllib.request
from dataclasses import dataclass, replace

from tracer import __version__
from tracer.model.report import Report
from tracer.push.endpoint import Endpoint
from tracer.report.pprof import to_pprof
from tracer.report.safe import printable
from tracer.report.samples import Metric
from tracer.web import web_opener

# rss_growth needs the ledger, which is made at the end.
METRICS: tuple[Metric, ...] = ("inuse_objects", "inuse_space", "alloc_objects", "alloc_space")
# What is held is averaged over time; what was allocated is that of the interval, and is summed.
_SAMPLE_TYPES = json.dumps(
    {
        metric: {
            "units": "objects" if metric.endswith("_objects") else "bytes",
            "aggregation": "average" if metric.startswith("inuse") else "sum",
            "display-name": metric,
            "sampled": False,
        }
        for metric in METRICS
    }
).encode()
_RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})
_MAX_WORDS = 120


@dataclass(frozen=True, slots=True)
class Upload:
    """A form ready to be sent, and the time that its profile is of, in seconds since the epoch."""

    body: bytes
    content_type: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt went: what went wrong (None: nothing), whether to try again, and after how long at least."""

    problem: str | None = None
    again: bool = False
    seconds: float = 0.0


def interval_of(before: Report | None, now: Report) -> Report:
    """``now`` with what was allocated since ``before`` only; what is held stays as it is."""
    if before is None or before.started != now.started:  # an exec began a new window
        return now
    known = {(stack.kind, stack.id): stack for stack in before.stacks}
    stacks = []
    for stack in now.stacks:
        earlier = known.get((stack.kind, stack.id))
        if earlier is not None:
            stack = replace(
                stack,
                allocated_bytes=max(0, stack.allocated_bytes - earlier.allocated_bytes),
                allocated_count=max(0, stack.allocated_count - earlier.allocated_count),
            )
        stacks.append(stack)
    return replace(now, stacks=tuple(stacks))


def encode(report: Report, start: float, end: float) -> Upload:
    """The report's stacks as a form."""
    boundary = secrets.token_hex(16)
    body = _form(
        boundary,
        ("profile", "profile.pprof", "application/octet-stream", to_pprof(report, METRICS)),
        ("sample_type_config", "sample_type_config.json", "application/json", _SAMPLE_TYPES),
    )
    return Upload(body, f"multipart/form-data; boundary={boundary}", start, end)


def send(endpoint: Endpoint, upload: Upload, timeout: float) -> Outcome:
    """Try once to deliver it. No operation on the connection takes longer than ``timeout`` seconds."""
    request = urllib.request.Request(
        endpoint.ingest_url(upload.start, upload.end),
        data=upload.body,
        headers={
            "User-Agent": f"memtrace/{__version__}",
            "Content-Type": upload.content_type,
            **endpoint.headers,
        },
        method="POST",
    )
    try:
        with web_opener(redirects=False).open(request, timeout=timeout):
            return Outcome()
    except urllib.error.HTTPError as error:
        with error:
            asked_for = (error.headers.get("Retry-After") or "")[:9]
            return Outcome(
                f"HTTP status {error.code}{_first_words(error)}",
                again=error.code in _RETRIED,
                seconds=float(asked_for) if asked_for.isascii() and asked_for.isdecimal() else 0.0,
            )
    except (OSError, http.client.HTTPException, ValueError) as error:
        return Outcome(_in_words(error), again=True)


def _form(boundary: str, *files: tuple[str, str, str, bytes]) -> bytes:
    """Files (field, file name, type, content) as a form (RFC 7578)."""
    parts = []
    for name, file, kind, content in files:
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="{file}"\r\n'
        parts += [head.encode(), f"Content-Type: {kind}\r\n\r\n".encode(), content, b"\r\n"]
    return b"".join([*parts, f"--{boundary}--\r\n".encode()])


def _first_words(error: urllib.error.HTTPError) -> str:
    """The beginning of what the server says, as it may be shown."""
    try:
        said = error.read1(_MAX_WORDS) if hasattr(error, "read1") else error.read(_MAX_WORDS)
    except (OSError, http.client.HTTPException, ValueError):
        return ""
    words = printable(" ".join(said.decode("utf-8", "replace").split()))
    return f" ({words})" if words else ""


def _in_words(error: Exception) -> str:
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, TimeoutError):
        return "no answer in time"
    if isinstance(reason, OSError) and reason.strerror:
        return printable(reason.strerror).lower()
    return "broken answer" if isinstance(reason, http.client.HTTPException) else printable(str(reason))[:_MAX_WORDS]
