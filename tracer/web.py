"""What opens URLs here: urllib, less its handlers of file:, ftp: and data:, to which a server could redirect."""

from __future__ import annotations

import urllib.request


def web_opener(*, redirects: bool) -> urllib.request.OpenerDirector:
    """Opens http: and https: only, through the proxies that the environment names; any other URL is a URLError.

    Without ``redirects``, one is an HTTPError: what is sent goes to the host that was named, and to no other.
    """
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
        *([urllib.request.HTTPRedirectHandler()] if redirects else []),
    ):
        opener.add_handler(handler)
    return opener
