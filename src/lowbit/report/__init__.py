"""Report: what was done and how good it is, to read and to look at."""
