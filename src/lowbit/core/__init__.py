"""The nouns every part shares: the problem, the maps, the protocols of the parts and their records."""
