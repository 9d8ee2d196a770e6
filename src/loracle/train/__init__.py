"""The loop, the optimizer, checkpoints. Not covered: what is measured (``evaluate``) and who runs it (``worker``)."""
