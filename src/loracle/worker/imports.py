"""Imports with the garbage collector out of the way."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """Imports go within the block. torch and its like make half a million objects that live as long as the process: collecting among
    them takes a fifth of the time of importing, and later a quarter of a second now and then. So nothing is collected
    meanwhile, and what is there by then is never looked at again (``gc.freeze``)."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_on:
            gc.enable()
