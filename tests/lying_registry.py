"""A registry in this process that answers as a test tells it to."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Request(BaseHTTPRequestHandler):
    """What a test's answer gets: ``path``, ``headers``, ``command``; and ``reply()``."""

    protocol_version = "HTTP/1.1"
    server: Any

    def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        named.setdefault("Content-Length", str(len(body)))
        for name, value in named.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def break_off(self) -> None:
        """End the connection in the middle."""
        self.wfile.flush()
        self.close_connection = True
        self.connection.shutdown(2)

    def setup(self) -> None:
        super().setup()
        self.server.connections.append(self.connection)

    def _answer(self) -> None:
        self.server.asked.append((self.command, self.path, dict(self.headers)))
        try:
            self.server.answer(self)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = _answer

    def log_message(self, format: str, *args: Any) -> None:
        pass


class LyingRegistry:
    def __init__(self, server: Any) -> None:
        self.host = f"127.0.0.1:{server.server_address[1]}"
        self.asked: list[tuple[str, str, dict[str, str]]] = server.asked


@contextmanager
def lying_registry(answer: Callable[[Request], None]) -> Iterator[LyingRegistry]:
    """Serve on loopback until the block is left; its threads have ended then, too."""
    server: Any = _Server(("127.0.0.1", 0), Request)
    server.answer, server.asked, server.connections = answer, [], []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield LyingRegistry(server)
    finally:
        server.shutdown()
        thread.join()
        for connection in server.connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that breaks off is part of the tests."""
