"""How slow the machine is, for waits that would take forever only if something is wrong: an emulated one is ten times
slower than the one for which they were chosen. Nothing that is tested may depend on it."""

import os

PATIENCE = float(os.environ.get("CK_TEST_PATIENCE", "1"))
