"""What the tests of containers share lies beside them."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))  # after tests/, whose conftest others import
