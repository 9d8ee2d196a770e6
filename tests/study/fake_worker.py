"""A worker without torch that obeys docs/jobs.md. ``FAKE_WORKER`` (JSON in the environment) says how it misbehaves.

Training is a hash chain over steps that starts from the cohort's composition: like the real engine, its result
depends on who sits beside whom and on nothing else, and it resumes from a checkpoint to the same end.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path

from loracle.spec.study import parse_bytes
from loracle.store.claims import claim
from loracle.store.files import digest, read_json, write_bytes, write_json
from loracle.worker.spare import wait_for_job

OPTIONS = json.loads(os.environ.get("FAKE_WORKER", "{}"))
stopped = False


def stop(*_: object) -> None:
    global stopped
    stopped = True


def progress(**event: object) -> None:
    print(json.dumps({"event": "progress", **event}), flush=True)


def span(folder: Path, what: str) -> None:
    """One line of when a job began and ended, on which GPU, and whether a spare does it."""
    seen = {"job": f"{folder.parent.name}/{folder.name}", "what": what, "gpu": os.environ.get("CUDA_VISIBLE_DEVICES")}
    with open(OPTIONS["spans"], "a") as lines:
        lines.write(json.dumps({**seen, "spare": sys.argv[1] == "--spare", "pid": os.getpid()}) + "\n")


def others(folder: Path) -> int:
    """How many other cohorts are at work, after some time to start."""
    time.sleep(OPTIONS["job_s"])
    lines = [json.loads(line) for line in Path(OPTIONS["spans"]).read_text().splitlines()]
    return sum(1 if line["what"] == "start" else -1 for line in lines if line["job"].startswith("cohorts/")) - 1


def orphan() -> bool:
    return str(os.getppid()) != os.environ["LORACLE_PARENT"]


def once(name: str) -> bool:
    """True the first ``OPTIONS[name]`` times; the count lies in a file beside the study."""
    times, counter = OPTIONS.get(name, 0), Path(OPTIONS.get("state", ".")) / f"{name}.count"
    if not times:
        return False
    seen = int(counter.read_text()) if counter.exists() else 0
    counter.write_text(str(seen + 1))
    return seen < times


def inspect(job: dict, root: Path) -> dict:
    if "usage" in OPTIONS:
        return {"status": "failed", "reason": OPTIONS["usage"], "usage": True}
    if "broken" in OPTIONS:
        return {"status": "failed", "reason": OPTIONS["broken"]}
    bases, data, cells = {}, {}, {}
    for cell in job["cells"]:
        config = cell["config"]
        model = config["base"]["model"]
        name = Path(model).name
        bases[model] = {
            "model": model, "resolved": model, "name": name, "revision": None,
            "fingerprint": digest(["base", name]) if job["weights"] else None, "linears": [],
        }  # fmt: skip
        rows = Path(config["task"]["data"])
        text = rows.read_bytes() if rows.is_file() else b""
        key = hashlib.sha256(text + str(config["task"]["max_length"]).encode()).hexdigest()[:8]
        (root / "data" / key).mkdir(parents=True, exist_ok=True)
        write_bytes(root / "data" / key / "train.parquet", b"train")
        write_bytes(root / "eval.parquet", b"eval")
        data[key] = {
            "fingerprint": digest(["data", key]), "rows_read": 10, "dropped": {"empty": 1}, "duplicates": 2,
            "train_rows": 8, "eval_rows": 2, "overlap": 0, "truncated": 1, "zero_target_rows": 0,
            "target_token_share": 0.5,
            "eval_file": "eval.parquet", "status": "done", "reason": None,
        }  # fmt: skip
        rank = config["adapter"]["rank"]
        quantized = config["precision"] in ("nf4", "int8")
        cells[cell["key"]] = {
            "base": model, "data": key, "trainable_params": 100 * rank, "total_params": 10_000 + 100 * rank,
            "predicted_bytes": 20_000 + rank, "ledger": {"adapters": 400 * rank},
            "effective_bits": 4.127 if quantized else 16.0,
            "compute_dtype": "float32", "storage": "dequantized" if quantized else "quantized",
            "steps": config["train"]["steps"] or 10,
        }  # fmt: skip
        if "cell_bytes" in OPTIONS:
            need, budget = OPTIONS["cell_bytes"].get(config["precision"], 1), OPTIONS.get("gpu_bytes")
            if job["gpu_memory"] is not None:
                budget = parse_bytes(job["gpu_memory"])
            cells[cell["key"]]["fit"] = {
                "budget_bytes": budget, "budget_source": "fake", "fits": need <= budget, "needs_bytes": need,
                "largest_batch": 1, "largest_rank": 2, "change": None if need <= budget else {"train.batch_size": 1},
            }  # fmt: skip
    size = OPTIONS.get("size", 6)
    sizing = {
        group["key"]: {
            "size": size,
            "ms_per_step": 10.0 * size if job["measure"] else None,
            "candidates": [],
            "reason": "fake",
            **OPTIONS.get("sizing", {}),
        }
        for group in job["groups"]
    }
    machine = {"device": OPTIONS.get("device", "cpu"), "cores": 2, "threads": job["threads"]}
    machine |= {"gpu_memory_bytes": OPTIONS.get("gpu_bytes"), "gpus": OPTIONS.get("gpus", 1)}
    return {"status": "done", "bases": bases, "data": data, "cells": cells, "sizing": sizing, "machine": machine}


def train(job: dict, folder: Path, root: Path) -> dict:
    members = job["members"]
    if "ends_beside" in OPTIONS and others(folder):
        return {"status": OPTIONS["ends_beside"], "reason": "out of memory"}
    if len(members) > OPTIONS.get("oom_above", 1000) or any(
        m["run"].startswith(OPTIONS.get("oom_run", "-")) for m in members
    ):
        return {"status": "oom", "reason": "out of memory"}
    steps, checkpoint = members[0]["config"]["train"]["steps"], folder / "checkpoint.json"
    state = read_json(checkpoint) if checkpoint.exists() else {"step": 0, "hash": digest([m["run"] for m in members])}
    while state["step"] < steps:
        if stopped:
            write_json(checkpoint, state)
            write_json(folder / "record.json", {"schema": 1, "kind": "train", "id": job["id"], "status": "interrupted"})
            sys.exit(143)
        if orphan():
            os._exit(1)
        time.sleep(OPTIONS.get("step_s", 0.0))
        state = {"step": state["step"] + 1, "hash": digest(state["hash"])}
        progress(phase="train", step=state["step"], steps=steps, loss=1.0 / state["step"], tokens_per_s=100.0)
        if state["step"] % 2 == 0:
            write_json(checkpoint, state)
        if state["step"] == steps // 2:
            if once("kill"):
                os.kill(os.getpid(), signal.SIGKILL)
            if once("crash"):
                raise RuntimeError("the fake worker crashes")
    if "broken_train" in OPTIONS:
        return {"status": "failed", "reason": OPTIONS["broken_train"]}
    statuses = {member["run"]: write_run(member, job, state["hash"], root) for member in members}
    return {"status": "done", "runs": statuses, "wall_s": 1.0, "peak_allocated_bytes": None}


def write_run(member: dict, job: dict, hash_: str, root: Path) -> str:
    run = member["run"]
    status = "diverged" if run.startswith(OPTIONS.get("diverge", "-")) else "done"
    if run.startswith(OPTIONS.get("forget", "-")):
        return "done"
    adapter = f"{run} {hash_}".encode()
    if "truth" in OPTIONS:
        write_predictions(root / "runs" / run / "predictions.parquet", member, **OPTIONS["truth"])
    if status == "done":
        write_bytes(root / "runs" / run / "adapter" / "adapter_model.safetensors", adapter)
    write_json(
        root / "runs" / run / "record.json",
        {
            "schema": 1, "kind": "run", "id": run, "cell": member["cell"], "cohort": job["id"], "seed": member["seed"],
            "role": member["role"], "status": status, "reason": None if status == "done" else "loss is not finite",
            "config": member["config"], "adapter_sha256": hashlib.sha256(adapter).hexdigest(), "metrics": {},
        },
    )  # fmt: skip
    return status


def write_predictions(path: Path, member: dict, cost: dict, seed_sd: float, swings: dict | None = None) -> None:
    """Losses of a known truth: the log ratio of each precision to bf16; seeds lie above and below it by turns."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    config, items = member["config"], 40
    rng = np.random.default_rng([member["seed"], config["adapter"]["rank"], len(config["precision"])])
    hard = np.random.default_rng(7).gamma(4.0, 0.5, items)
    shift = cost.get(config["precision"], 0.0)
    seed_sd = (swings or {}).get(config["precision"], seed_sd)
    shift += seed_sd * (-1) ** member["seed"] if config["precision"] in cost else 0.0
    loss = hard * np.exp(shift + rng.normal(0, 0.005, items))
    pq.write_table(pa.table({"item": range(items), "loss": loss, "target_tokens": [3] * items}), path)


def diagnose(job: dict, root: Path) -> dict:
    if "broken_diagnose" in OPTIONS:
        return {"status": "failed", "reason": OPTIONS["broken_diagnose"]}
    write_json(
        root / "diagnose" / "similarity.json", {"schema": 1, "pairs": [{**p, "layers": []} for p in job["pairs"]]}
    )
    write_json(root / "diagnose" / "agreement.json", {"schema": 1, "pairs": job["agreement"]})
    return {"status": "done"}


def sensitivity(job: dict, root: Path) -> dict:
    write_json(
        root / "diagnose" / "sensitivity_sweeps.json",
        {"schema": 1, "sweeps": [{**s, "units": []} for s in job["sweeps"]]},
    )
    write_json(root / "diagnose" / "sensitivity.json", [])
    block = {"default": "nf4", "h.1.attn.c_proj": "bf16"}
    kept = "nf4" if OPTIONS.get("nothing_to_keep") else block
    if job["mixes"]:
        mixes = [{**mix, "precision": kept} for mix in job["mixes"]]
        write_json(root / "diagnose" / "mixed_precision.json", {"schema": 1, "mixes": mixes})
    return {"status": "done", "sweeps": len(job["sweeps"])}


def allocation(job: dict, root: Path) -> dict:
    content = {
        "schema": 1,
        "inputs_sha256": job["inputs_sha256"],
        "spectra": job["runs"],
        "gradients": job["gradients"],
    }
    write_json(root / "diagnose" / "importance.json", content)
    return {"status": "done"}


def main(folder: Path) -> None:
    signal.signal(signal.SIGTERM, stop)
    root = folder.parent.parent
    with claim(folder / "claim.lock", "job", wait_s=10):
        with open(OPTIONS["journal"], "a") if "journal" in OPTIONS else open(os.devnull, "a") as journal:
            journal.write(f"{folder.parent.name}/{folder.name}\n")
        if "spans" in OPTIONS:
            span(folder, "start")
        job = read_json(folder / "job.json")
        if job["kind"] == "inspect":
            record = inspect(job, root)
        elif job["kind"] == "train":
            record = train(job, folder, root)
        elif job["kind"] == "diagnose":
            record = diagnose(job, root)
        elif job["kind"] == "sensitivity":
            record = sensitivity(job, root)
        elif job["kind"] == "allocation":
            record = allocation(job, root)
        else:
            if "crash_probe" in OPTIONS:
                raise RuntimeError("no probe today")
            record = {
                "status": "done",
                "cell": job["cell"],
                "storage": job["config"]["storage"],
                "ms_per_step": {"median": 1.0},
            }
        if "spans" in OPTIONS:
            time.sleep(OPTIONS.get("job_s", 0.0))
            span(folder, "end")
        write_json(folder / "record.json", {"schema": 1, "kind": job["kind"], "id": job["id"], **record})


if sys.argv[1] == "--doctor":
    print(
        json.dumps(
            {"torch": "2.0", "cuda": None, "device_name": "fake", "bitsandbytes": None, "fast_dtypes": ["float32"]}
        )
    )
elif sys.argv[1] == "--spare":
    if OPTIONS.get("spare_dies"):
        sys.exit("this spare dies")
    print("a spare is ready", file=sys.stderr, flush=True)
    given = wait_for_job(())
    if given is not None:
        main(given)
else:
    main(Path(sys.argv[1]))
