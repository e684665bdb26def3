"""Tests of ccassets, in the shape of the package, and the campaigns that try to break its promises."""

import os

# Models of a few thousand parameters: threads would only wait for each other, and forks have none. Before torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")
