"""Errors that a user can act on: one line that says what is wrong, where, and what to do."""

from __future__ import annotations

# Exit codes of the command line (DESIGN: contracts on disk and screen).
EXIT_DONE = 0
EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_UNFINISHED = 3
EXIT_SIGINT = 130
EXIT_SIGTERM = 143


class LoracleError(Exception):
    """Something went wrong that is not a bug: shown as one line, exit code 1."""

    exit_code = EXIT_FAILURE


class SpecError(LoracleError):
    """The study (or a command's options) cannot mean anything: exit code 2. ``where`` is a dotted path."""

    exit_code = EXIT_USAGE

    def __init__(self, message: str, where: str = "") -> None:
        super().__init__(f"{where}: {message}" if where else message)
        self.where = where


class DataError(LoracleError):
    """A data file is not what it should be; ``where`` is ``file:line`` where a line is known."""

    def __init__(self, message: str, where: str = "") -> None:
        super().__init__(f"{where}: {message}" if where else message)
        self.where = where


class ModelError(LoracleError):
    """A base model cannot be loaded or does not have what the study asks of it."""


class StoreError(LoracleError):
    """A study folder is damaged, foreign, or in use."""


def one_line(error: BaseException, limit: int = 400) -> str:
    """The first informative line of an error, for a record's ``reason``."""
    text = " ".join(str(error).split()) or type(error).__name__
    if not isinstance(error, LoracleError):
        text = f"{type(error).__name__}: {text}"
    return text if len(text) <= limit else text[: limit - 1] + "…"
