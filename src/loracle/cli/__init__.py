"""The command line: one file a command group, each parses, calls and prints. Never loads torch."""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """``loracle``: run one command and exit with its code; what goes wrong is one line on standard error."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    sys.exit(_run([word for word in given if word != "--debug"], debug))


def _run(arguments: list[str], debug: bool) -> int:
    from loracle.cli.app import app

    try:
        return int(app(arguments, prog_name="loracle", standalone_mode=False) or 0)
    except BrokenPipeError:
        sys.stderr.close()  # the reader has gone: nothing to say, nobody to say it to
        return 1
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            import traceback

            traceback.print_exc()
        text, code = _explained(error)
    print(f"{'' if code in (130, 143) else 'error: '}{' '.join(text.split())}", file=sys.stderr)
    return code


def _explained(error: BaseException) -> tuple[str, int]:
    """(one line, exit code)."""
    import typer

    from loracle.base.errors import EXIT_FAILURE, EXIT_SIGINT, EXIT_USAGE, LoracleError, one_line

    if isinstance(error, LoracleError):
        return str(error), error.exit_code
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return "interrupted", EXIT_SIGINT
    if isinstance(error, OSError):
        return f"{error.filename or 'file'}: {error.strerror or error}", EXIT_FAILURE
    if usage := _usage(error):
        return usage, EXIT_USAGE
    return f"{one_line(error)} (a bug in loracle: --debug shows where)", EXIT_FAILURE


def _usage(error: BaseException) -> str | None:
    """Typer's own complaint about the command line, as one line."""
    import typer

    if not any(kind.__name__ == "ClickException" for kind in typer.BadParameter.__mro__ if isinstance(error, kind)):
        return None
    context = getattr(error, "ctx", None)
    where = f" (see {context.command_path} --help)" if context else ""
    return f"{error.format_message()}{where}"  # type: ignore[attr-defined]
