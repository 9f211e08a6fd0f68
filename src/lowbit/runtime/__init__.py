"""Runtime: what a loaded model runs."""
