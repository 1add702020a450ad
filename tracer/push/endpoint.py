"""Where profiles are pushed to: the address as typed, the application's name, and what proves who we are."""

from __future__ import annotations

import base64
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import SplitResult, parse_qs, unquote, urlencode, urlsplit, urlunsplit

from tracer.errors import UsageError

TOKEN_VARIABLE = "MEMTRACE_PUSH_TOKEN"
TENANT_VARIABLE = "MEMTRACE_PUSH_TENANT"

_MAX_NAME = 512
_MAX_WORD = 64
_EXAMPLE = "for instance: --push http://localhost:4040"
_USERINFO = re.compile(r"(?<=://)[^/?#\s]*@")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An ingest URL without its query, the application's name (``app{label=value,...}``), and headers to send along.

    ``shown`` is the URL as it may be shown: without user and password. So is this object's representation.
    """

    url: str = field(repr=False)
    name: str
    shown: str
    headers: Mapping[str, str] = field(repr=False)

    def ingest_url(self, start: float, end: float, spy: str = "memtrace") -> str:
        """The URL for a profile of these seconds since the epoch."""
        # No "format": where it is given, servers take the body for a bare profile and not for a form
        # (grafana/pyroscope, pkg/ingester/pyroscope/ingest_handler.go).
        query = {"name": self.name, "from": int(start), "until": max(int(start) + 1, int(end)), "spyName": spy}
        return f"{self.url}?{urlencode(query)}"


def parse_endpoint(url: str, environ: Mapping[str, str], command: str, pid: int) -> Endpoint:
    """The endpoint that a URL such as ``https://user:password@host/path?name=app{env=prod}`` names.

    Without a name in it, the name is the command's, with labels for host and pid. Raises UsageError; its text never
    holds the password.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise UsageError(f"--push: {hidden(url)} is no URL", _EXAMPLE) from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"--push: {hidden(url)} is no URL that begins with http:// or https://", _EXAMPLE)
    if not url.isascii() or any(c.isspace() for c in url):
        raise UsageError(f"--push: {hidden(url)} has characters that no URL may have", "write them as %XX")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    path = parts.path.rstrip("/")
    path = path if path.endswith("/ingest") else f"{path}/ingest"
    plain = urlunsplit((parts.scheme, host if port is None else f"{host}:{port}", path, "", ""))
    return Endpoint(plain, _name_in(parts) or default_name(command, pid), plain, _headers(parts, environ))


def hidden(text: str) -> str:
    """Text in which no URL shows its user and password."""
    return _USERINFO.sub("***@", text)


def default_name(command: str, pid: int) -> str:
    """The command's name with labels, in the characters that labels may have."""
    program = (command.split() or ["unknown"])[0].rstrip(":").rpartition("/")[2]
    return f"{_word(program) or 'unknown'}{{host={_word(socket.gethostname()) or 'unknown'},pid={pid}}}"


def _word(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", text)[:_MAX_WORD]


def _name_in(parts: SplitResult) -> str | None:
    query = parse_qs(parts.query)
    if unknown := sorted(query.keys() - {"name"}):
        raise UsageError(f"--push: the URL's query may hold a name only, not {unknown[0]!r}", _EXAMPLE)
    name = query.get("name", [None])[0]
    if name is not None and (len(name) > _MAX_NAME or not re.fullmatch(r"[^{}\s]+(\{[^{}]*\})?", name)):
        raise UsageError("--push: the name is not of the form app{label=value,...}", f"{_EXAMPLE}?name=app{{env=prod}}")
    return name


def _headers(parts: SplitResult, environ: Mapping[str, str]) -> dict[str, str]:
    headers = {}
    token, tenant = environ.get(TOKEN_VARIABLE, ""), environ.get(TENANT_VARIABLE, "")
    for variable, value in ((TOKEN_VARIABLE, token), (TENANT_VARIABLE, tenant)):
        if not value.isascii() or not value.isprintable():
            raise UsageError(f"{variable} holds characters that no HTTP header may have")
    if parts.username is not None:
        login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Authorization"] = f"Basic {base64.b64encode(login.encode()).decode()}"
    elif token:
        headers["Authorization"] = f"Bearer {token}"
    if tenant:
        headers["X-Scope-OrgID"] = tenant
    return headers
