"""Standard library only: errors, registry of names, log."""
