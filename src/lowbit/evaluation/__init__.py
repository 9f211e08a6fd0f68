"""Evaluation: how close a quantized model is to its original."""
