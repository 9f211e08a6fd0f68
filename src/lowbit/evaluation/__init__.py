"""Perplexity, divergence from a reference, size, and tasks."""

from lowbit.evaluation.evaluate import evaluate
from lowbit.evaluation.records import Divergence, Estimate, Measures, Size

__all__ = ["Divergence", "Estimate", "Measures", "Size", "evaluate"]
