"""Formats: how quantized models lie on disk."""
