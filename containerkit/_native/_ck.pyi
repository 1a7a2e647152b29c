from typing import Any

class _FFI:
    NULL: Any
    def new(self, ctype: str, init: Any = ...) -> Any: ...
    def buffer(self, cdata: Any, size: int = ...) -> Any: ...
    def from_buffer(self, ctype: str, data: Any, require_writable: bool = ...) -> Any: ...

ffi: _FFI
lib: Any
