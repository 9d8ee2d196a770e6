"""The study file's types: frozen pydantic models, strict, unknown keys are errors naming the dotted path."""

from loracle.spec.load import load_study, parse_study, study_schema
from loracle.spec.study import Adapter, Base, Cell, Question, Study, Task, Train

__all__ = ["Adapter", "Base", "Cell", "Question", "Study", "Task", "Train", "load_study", "parse_study", "study_schema"]
