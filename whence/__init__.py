"""Whence: training-data attribution as a pipeline."""

import os

__version__ = "0.1.0"

# Threads without work sleep: spinning, as is OpenMP's default, they take the processor from the one they wait for where
# another process computes, too. OpenMP reads this when torch is loaded, so it stands before all imports of torch.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
