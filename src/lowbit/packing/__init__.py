"""Packing: integers of any width as a dense little-endian bit stream, and the check that a stream is legal."""

from lowbit.packing.dense import pack as pack
from lowbit.packing.dense import unpack as unpack
from lowbit.packing.words import pack_words as pack_words
from lowbit.packing.words import unpack_words as unpack_words
