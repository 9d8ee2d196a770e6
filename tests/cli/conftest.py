"""What the tests of ``loracle eval`` share."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from loracle.cli import main


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run ``loracle eval`` in this process: (exit code, standard output, standard error)."""

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["eval", *arguments])
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run
