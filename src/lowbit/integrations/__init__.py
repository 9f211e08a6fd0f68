"""Integrations: lowbit checkpoints where people already work."""
