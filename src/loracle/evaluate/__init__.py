"""Loss, greedy generation and the reload check of trained adapters. Scores of texts are in ``tasks.metrics``."""
