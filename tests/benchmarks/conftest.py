"""benchmarks/ is not installed; it is found in the checkout, behind whatever is installed."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))

import benchmarks.standin  # noqa: F401 - its device is registered before autograd first runs in this process
