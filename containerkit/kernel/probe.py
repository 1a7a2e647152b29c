"""What this machine can do, found out by doing it. (in progress)"""

from __future__ import annotations

_CAPABILITIES = {"sys_admin": 21}


def has_capability(name: str) -> bool:
    """Whether the calling thread has a capability in its own user namespace (effective set, capabilities(7))."""
    with open("/proc/thread-self/status") as file:
        for line in file:
            if line.startswith("CapEff:"):
                return bool(int(line[7:], 16) >> _CAPABILITIES[name] & 1)
    return False
