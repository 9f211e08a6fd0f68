"""Kernels: tensors in, tensors out.

For each operation a plain torch reference and a numba version for the CPU; in `triton`, versions for GPUs.
"""
