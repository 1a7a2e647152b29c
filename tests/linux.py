"""The version of the kernel: some things only newer ones have, and an older one must then refuse."""

import os
import re

_found = re.match(r"(\d+)\.(\d+)", os.uname().release)
assert _found
VERSION = (int(_found[1]), int(_found[2]))
