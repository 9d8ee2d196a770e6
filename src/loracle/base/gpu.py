"""What is the same for every program on a CUDA GPU."""

CONTEXT = 600 << 20
"""Bytes of a GPU that the CUDA context and loaded kernels take outside torch's allocator, about."""
