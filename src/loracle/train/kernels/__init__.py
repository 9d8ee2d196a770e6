"""Triton kernels of the optimizer on a CUDA GPU. Importing this package loads no Triton; the modules in it do."""
