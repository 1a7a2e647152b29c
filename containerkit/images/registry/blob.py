"""The bytes of a blob, whatever connections they take."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from ...errors import ContentMismatch, RegistryError
from .transport import Response, discard, read_some, without_query

__all__ = ["Blob"]

_BREAKS_MAX = 5
_PROGRESS = 1 << 20  # bytes after which earlier breaks are forgiven
_SLOW_SECONDS, _SLOW_BYTES = 60.0, 16 << 10
_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)", re.ASCII)


class Blob:
    """Read with ``read()``. When the connection breaks, or brings less than 16 KiB in a minute, another goes on there.

    Raises ContentMismatch when there are more bytes than ``size``, RegistryError when it does not go on.
    """

    def __init__(self, request: Callable[[dict[str, str]], Response], url: str, size: int, offset: int) -> None:
        self._request, self._url, self._size, self._at = request, url, size, offset
        self._response: Response | None = None
        self._breaks, self._forgiven = 0, offset + _PROGRESS
        self._window, self._in_window = time.monotonic(), 0
        if offset < size or not size:
            self._connect()

    def read(self, n: int, /) -> bytes:
        """Some bytes more, up to ``n``; none at the end."""
        while True:
            response = self._response
            if response is None or (self._at == self._size and not self._size):
                self.close()
                return b""
            try:
                piece = read_some(response, min(n, self._size - self._at) or 1)
                self._hurry(len(piece))
            except Exception as error:
                if self._at == self._size:
                    self.close()
                    return b""
                self._again(error)
                continue
            if self._at == self._size:
                self._end(piece)
                return b""
            if not piece:
                self._again(None)
                continue
            self._at += len(piece)
            if self._at >= self._forgiven:
                self._breaks, self._forgiven = 0, self._at + _PROGRESS
            return piece

    def _end(self, piece: bytes) -> None:
        if piece:
            self.close()
            raise ContentMismatch(f"{without_query(self._url)} goes on after its {self._size} bytes")
        response, self._response = self._response, None
        if response is not None:
            response.release_conn()

    def close(self) -> None:
        """Done with it. Idempotent."""
        response, self._response = self._response, None
        if response is not None:
            response.close()

    def _hurry(self, count: int) -> None:
        self._in_window += count
        now = time.monotonic()
        if now - self._window > _SLOW_SECONDS:
            slow = self._in_window < _SLOW_BYTES
            self._window, self._in_window = now, 0
            if slow:
                raise TimeoutError(f"fewer than {_SLOW_BYTES} bytes in a minute")

    def _again(self, error: Exception | None) -> None:
        from urllib3.exceptions import HTTPError

        if error is not None and not isinstance(error, (HTTPError, OSError)):
            raise error
        self.close()
        self._breaks += 1
        if self._breaks > _BREAKS_MAX:
            raise RegistryError(
                f"{without_query(self._url)} broke off {self._breaks} times, at last after {self._at} of "
                f"{self._size} bytes; what has come is kept: try again",
                without_query(self._url),
            ) from None
        time.sleep(min(0.1 * 3**self._breaks, 10) if self._breaks > 1 else 0)
        self._connect()

    def _connect(self) -> None:
        response = self._request({"Range": f"bytes={self._at}-"} if self._at else {})
        if response.status == 206 and self._at:
            self._check_range(response)
        elif response.status == 200:
            self._check_length(response)
            self._skip(response)
        else:
            status = response.status
            discard(response)
            why = "has not this blob" if status == 404 else f"answers {status}"
            raise RegistryError(f"{without_query(self._url)} {why}", without_query(self._url), status)
        self._response = response
        self._window, self._in_window = time.monotonic(), 0

    def _check_range(self, response: Response) -> None:
        found = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if found is None or int(found[1]) != self._at or found[3] not in ("*", str(self._size)):
            response.close()
            raise ContentMismatch(
                f"{without_query(self._url)} was asked for bytes {self._at} to {self._size} and gives "
                f"{response.headers.get('Content-Range')!r}"
            )

    def _check_length(self, response: Response) -> None:
        length = response.headers.get("Content-Length")
        if length is not None and length != str(self._size):
            response.close()
            raise ContentMismatch(f"{without_query(self._url)} has {length} bytes: its descriptor says {self._size}")

    def _skip(self, response: Response) -> None:
        """It does not know ranges: what is there already comes once more."""
        left = self._at
        while left:
            piece = read_some(response, min(left, 1 << 20))
            if not piece:
                response.close()
                raise RegistryError(f"{without_query(self._url)} breaks off again and again", without_query(self._url))
            left -= len(piece)
