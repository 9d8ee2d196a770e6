"""Judges: who compares or rates answers, how a verdict is asked for, read, kept and counted. All but ``local.py`` without torch.

Not covered: the length-controlled win rate (``tasks.alpaca_eval`` says why), more than one judge for a score.
"""
