"""What the GPU benchmarks share: shapes, the rivals, ours, timing, results. The scripts over it are ``benchmarks/*_cuda.py``."""
