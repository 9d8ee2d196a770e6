"""Triton kernels of the adapters on a CUDA GPU. Importing this package loads no Triton; the modules in it do."""
