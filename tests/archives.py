"""Archives for tests, written by the standard library: entries in one line each."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable

_TYPES = {"/": tarfile.DIRTYPE, "@": tarfile.SYMTYPE, "=": tarfile.LNKTYPE}


def entry(name: str, content: bytes | str | None = None, /, **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    """``"d/"`` is a directory, ``("l", "@target")`` a symbolic link, ``("h", "=other")`` a hard link."""
    info = tarfile.TarInfo(name.rstrip("/") or "./")
    info.mode, info.mtime, data = 0o644, 1_000_000_000, b""
    if name.endswith("/"):
        info.type, info.mode = tarfile.DIRTYPE, 0o755
    elif isinstance(content, str) and content.startswith(("@", "=")):
        info.type, info.linkname = _TYPES[content[0]], content[1:]
    else:
        data = content.encode() if isinstance(content, str) else content or b""
        info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def archive(entries: Iterable[tuple[tarfile.TarInfo, bytes] | str]) -> bytes:
    """A PAX archive; a bare string is an entry without content."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for one in entries:
            info, data = entry(one) if isinstance(one, str) else one
            tar.addfile(info, io.BytesIO(data) if info.isreg() else None)
    return out.getvalue()
