"""What the tests of ``loracle eval`` share."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from loracle.cli import main


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run ``loracle eval`` in this process: (exit code, standard output, standard error)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["eval", *map(str, arguments)])
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


@pytest.fixture
def refused(call: Callable[..., tuple[int, str, str]]) -> Callable[..., None]:
    """Run it and see one line on standard error that holds ``words``, nothing on standard output, and ``code``."""

    def run(arguments: list[str], code: int, words: str) -> None:
        found, out, err = call(*arguments)
        assert (found, out) == (code, "")
        assert words in err
        assert err.startswith("error: ")
        assert err.count("\n") == 1

    return run
