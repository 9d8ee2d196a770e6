"""Logging for library code and workers: one logger, plain lines on standard error."""

from __future__ import annotations

import logging
import sys

logger = logging.getLogger("loracle")


def to_stderr(level: int = logging.INFO) -> None:
    """Send loracle's log to standard error with a time stamp, once."""
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
        logger.addHandler(handler)
    logger.setLevel(level)
