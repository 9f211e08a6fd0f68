"""Integrations: lowbit inside the tools where people work."""
