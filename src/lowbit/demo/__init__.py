"""The small model that ships with lowbit, and its text."""
