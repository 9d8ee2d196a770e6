"""The sensitivity job: which sweeps a study needs, and whether they have been made.

A sweep is of a base and a codec, whatever is trained on them: cells that share both share it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loracle.base.errors import StoreError
from loracle.spec.study import FOUR_BIT, INTEGER, UNQUANTIZED, Study
from loracle.store.files import SCHEMA, digest, read_json
from loracle.store.layout import StudyFolder
from loracle.store.provenance import ENGINE
from loracle.study.cells import asks
from loracle.study.crew import Crew, Job

SENSITIVITY = "sensitivity"


def sensitivity(study: Study, layout: StudyFolder, plan: Mapping[str, Any], crew: Crew, threads: int) -> str | None:
    """Run the sensitivity job where the study asks for it and a sweep is missing. Returns what went wrong, if anything."""
    sweeps = sweeps_of(plan) if asks(study, SENSITIVITY) else []
    if not sweeps or _all_there(layout, sweeps):
        return None
    payload = {
        "schema": SCHEMA,
        "kind": SENSITIVITY,
        "id": SENSITIVITY,
        "device": study.run.device,
        "threads": threads,
        "sweeps": sweeps,
    }
    end = crew.one(Job(layout.job(SENSITIVITY), payload, "quantizing one matrix at a time", threads))
    return None if end.status == "done" else f"{SENSITIVITY}: {end.reason}"


def sweeps_of(plan: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each pair of a base and a quantized codec among the plan's cells once, in their order."""
    found: dict[str, dict[str, Any]] = {}
    for cell in plan["cells"]:
        config = cell["config"]
        precision, base = config["precision"], config["base"]
        names = list(precision.values()) if isinstance(precision, Mapping) else [precision]
        for name in dict.fromkeys(name for name in names if name not in UNQUANTIZED):
            sweep = {
                "base": base.get("name") or base["model"],
                "model": base["model"],
                "revision": base.get("revision"),
                "codec": name,
                "double_quant": bool(config["double_quant"]) if name in FOUR_BIT else None,
                "block_size": (config["block_size"] or 64) if name in FOUR_BIT | INTEGER else None,
            }
            known = base.get("fingerprint") or [base["model"], base.get("revision")]
            settings = [sweep[key] for key in ("codec", "double_quant", "block_size")]
            key = digest([ENGINE, known, settings])
            found.setdefault(key, {**sweep, "inputs_sha256": key})
    return list(found.values())


def _all_there(layout: StudyFolder, sweeps: list[dict[str, Any]]) -> bool:
    """Whether the files hold just these sweeps."""
    try:
        made = read_json(layout.sensitivity_sweeps)["sweeps"]
        same = [one["inputs_sha256"] for one in made] == [one["inputs_sha256"] for one in sweeps]
        return same and layout.sensitivity.is_file()
    except (StoreError, KeyError, TypeError):
        return False
