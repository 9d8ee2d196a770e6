"""``doctor``: what this machine is good for. Torch's facts come from a worker process: this one never loads torch."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from typing import Annotated, Any

import typer

HUB = ("huggingface.co", 443)
HUB_TIMEOUT_S = 2.0
WORKER_TIMEOUT_S = 120.0


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Explain this machine: versions, GPU, dtypes that are fast, memory, cores, hub access."""
    facts = examine()
    if as_json:
        print(json.dumps(facts, indent=1))
        return
    for key, value in facts.items():
        print(f"{key.replace('_', ' '):<18} {_shown(key, value)}")
    for advice in advise(facts):
        print(f"- {advice}")


def examine() -> dict[str, Any]:
    """All facts. Torch's are null with ``torch_reason`` where the worker could not tell."""
    from loracle.store.provenance import versions
    from loracle.study.resources import usable_cores

    found = versions()
    facts: dict[str, Any] = {"loracle": found["loracle"], "python": found["python"], "cores": usable_cores()}
    facts["memory_bytes"] = memory_bytes()
    facts.update(worker_facts())
    for name in ("transformers", "peft"):
        facts.setdefault(name, found[name])
    facts["hub"] = hub_access()
    return facts


def worker_facts() -> dict[str, Any]:
    """What ``python -m loracle.worker --doctor`` says of torch, CUDA and bitsandbytes."""
    from loracle.study.launch import worker_command, worker_environment
    from loracle.study.resources import usable_cores

    try:
        done = subprocess.run(
            worker_command("--doctor"),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=WORKER_TIMEOUT_S,
            env=worker_environment(os.environ, usable_cores()),
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"torch": None, "torch_reason": str(error)}
    for line in reversed(done.stdout.splitlines()):
        try:
            facts = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(facts, dict):
            return facts
    errors = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return {
        "torch": None,
        "torch_reason": errors[-1] if errors else f"the worker ended with exit code {done.returncode}",
    }


def memory_bytes() -> int | None:
    """Physical memory; null where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None


def hub_access() -> str:
    """``reachable``, ``not reachable``, or ``offline`` where HF_HUB_OFFLINE asks for it."""
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return "offline (HF_HUB_OFFLINE)"
    try:
        with socket.create_connection(HUB, timeout=HUB_TIMEOUT_S):
            return "reachable"
    except OSError:
        return "not reachable"


def advise(facts: dict[str, Any]) -> list[str]:
    """What follows from the facts, in sentences."""
    advice: list[str] = []
    if facts.get("torch") is None:
        return [f"torch cannot be loaded, so nothing can be trained: {facts.get('torch_reason')}"]
    if not facts.get("cuda"):
        advice.append("no CUDA device: studies run on the CPU; memory is predicted, not measured")
    fast = facts.get("fast_dtypes") or []
    if fast and not any("bf" in str(dtype) for dtype in fast):
        advice.append("bf16 arithmetic is slow here: bf16 weights are rounded to bf16 and computed in float32")
    if facts.get("cuda") and facts.get("triton") is None:
        advice.append("triton is missing: steps on this GPU take several times as long (pip install triton)")
    if facts.get("bitsandbytes") is None:
        advice.append("bitsandbytes is missing: nf4, fp4 and int8 will not work (pip install bitsandbytes)")
    if facts.get("bytecode") is False:
        advice.append(
            "torch's bytecode is not kept (PYTHONDONTWRITEBYTECODE is set, or the installation is read-only): every worker "
            "compiles it anew, which takes seconds (unset it and name a folder in PYTHONPYCACHEPREFIX)"
        )
    if facts.get("hub") == "not reachable":
        advice.append("the hub cannot be reached: use model folders, local data, or gpt2-demo")
    return advice


def _shown(key: str, value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if key.endswith("_bytes") and isinstance(value, int | float):
        return f"{value / 1e9:,.1f} GB"
    return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)
