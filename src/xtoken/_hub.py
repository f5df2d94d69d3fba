"""Whether asking the model hub makes sense at all."""

from __future__ import annotations

import os
import socket
import urllib.parse
import urllib.request


def why_unreachable() -> str | None:
    """Return why the hub can't be asked, None if it may answer.

    Its client retries a name that does not resolve for half a minute, so that a mistyped path on a
    machine without a network would seem to hang. Behind a proxy, names are the proxy's business.
    """
    if os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "TRUE", "YES", "ON"):
        return "HF_HUB_OFFLINE is set"
    if urllib.request.getproxies():
        return None
    endpoint = urllib.parse.urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    try:
        socket.getaddrinfo(endpoint.hostname, endpoint.port or 443)
    except OSError:
        return f"{endpoint.hostname} can't be found: there is no network"
    return None
