"""Studies: plan and execute. Never loads torch: workers are processes (docs/jobs.md)."""

from loracle.study.execute import run_study
from loracle.study.interrupt import Interrupted
from loracle.study.plan import make_plan
from loracle.study.states import Outcome

__all__ = ["Interrupted", "Outcome", "make_plan", "run_study"]
