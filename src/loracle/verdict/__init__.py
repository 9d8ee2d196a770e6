"""Records to decisions: paired statistics, non-inferiority, r*, similarity against its null, confounds,
Pareto, methods side by side, broken precisions, hypotheses, failure modes.

Pure functions over plain values: numpy, scipy and the standard library only; no file is read here. The rules
are DESIGN section 6, and each one's error rates are checked by simulation
(``benchmarks/verdict_simulation.py``, ``tests/verdict/test_verdict_simulation.py``).
"""

from loracle.verdict.evidence import RunScores, StudyEvidence
from loracle.verdict.hypotheses import hypotheses
from loracle.verdict.questions import decide, decide_primary, primary_question
from loracle.verdict.recommendation import recommendation

__all__ = ["RunScores", "StudyEvidence", "decide", "decide_primary", "hypotheses", "primary_question", "recommendation"]
