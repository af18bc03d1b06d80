"""Where the server listens, and how that is said. Nothing heavy is imported: a port that is taken is
told at once.
"""

from __future__ import annotations

import json
import socket
import urllib.parse
from typing import Any

from m27.serve.settings import SettingsError


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there. Raises SettingsError where that cannot be."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # By its protocol the event loop knows that small pieces are to be sent at once (TCP_NODELAY).
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host.strip("[]"), port))
    except OSError as error:
        listening.close()
        why = f"{host}:{port} cannot be listened at: {error.strerror or error}"
        raise SettingsError(why) from None
    return listening


def address(listening: socket.socket) -> str:
    """The URL under which a socket is reached."""
    host, port = listening.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = socket.gethostname()
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def example(url: str, key: bool) -> str:
    """One `curl` line that can be pasted."""
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "Draw a red apple."}]}
    header = " -H 'Authorization: Bearer KEY'" if key else ""
    there = urllib.parse.urljoin(url, "/v1/chat/completions")
    return f"curl {there}{header} -H 'Content-Type: application/json' -d '{json.dumps(body)}'"
