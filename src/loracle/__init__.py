"""loracle: how many bits, what rank, which layers, will it fit, and is the difference real?"""

__version__ = "0.1.0"
