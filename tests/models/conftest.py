"""As the adapters' tests: one thread."""

from tests.adapters.conftest import one_thread

__all__ = ["one_thread"]
