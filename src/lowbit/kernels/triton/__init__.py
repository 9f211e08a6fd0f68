"""The kernels again, for GPUs, in Triton. Nothing imports them unless a tensor on a GPU asks; lowbit works without.

All are checked against their references by Triton's interpreter on the CPU, and compiled for the GPUs named in the
tests; no more was possible where they were written: no time in their docstrings was measured, and block sizes come
from counting registers and bytes.
"""
