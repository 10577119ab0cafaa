"""Things that must not be touched, and that notice when they are: a watched file and a local server."""

from __future__ import annotations

import ctypes
import http.server
import os
import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

_IN_ACCESS, _IN_MODIFY, _IN_OPEN, _IN_CREATE = 0x1, 0x2, 0x20, 0x100
CAN_WATCH = sys.platform == "linux"


class Watch:
    """Notices that a file is opened by anything in this system, C libraries and children included.

    For a folder: that something in it is opened, or made in it.
    """

    def __init__(self, path: Path) -> None:
        library = ctypes.CDLL(None, use_errno=True)
        self._descriptor = library.inotify_init1(os.O_NONBLOCK)
        mask = _IN_OPEN | _IN_ACCESS | _IN_MODIFY | _IN_CREATE
        if library.inotify_add_watch(self._descriptor, os.fsencode(path), mask) < 0:
            raise OSError(ctypes.get_errno(), "inotify", str(path))

    def touched(self) -> list[str]:
        """Names (empty for the watched file itself) since the last call."""
        try:
            data = os.read(self._descriptor, 1 << 20)
        except BlockingIOError:
            return []
        names, at = [], 0
        while at < len(data):
            _, mask, _, length = struct.unpack_from("iIII", data, at)
            name = os.fsdecode(data[at + 16 : at + 16 + length].rstrip(b"\0"))
            if not mask & 0x40000000:  # a folder was listed
                names.append(name)
            at += 16 + length
        return names

    def close(self) -> None:
        os.close(self._descriptor)


@dataclass
class Server:
    """A local HTTP server; `requests` holds the first line of whatever was sent to it."""

    port: int
    requests: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/canary.mp4"


@contextmanager
def serve(answer: bytes = b"") -> Iterator[Server]:
    """A server that answers every request with `answer`."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def handle_one_request(self) -> None:
            line = self.rfile.readline(4096)
            if line:
                server.requests.append(line.decode("latin-1").strip())
                self.wfile.write(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % len(answer) + answer)
            self.close_connection = True

    listener = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server = Server(listener.server_port)
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        listener.shutdown()
        listener.server_close()
        thread.join()
