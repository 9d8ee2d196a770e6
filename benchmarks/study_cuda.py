"""A whole study, from the command to the report: 24 runs of GPT-2 medium's shape, against the same runs one after another over PEFT.

    python benchmarks/study_cuda.py [--data alpaca_data.json] [--tokenizer FOLDER] [--quick] [--repeats 2]
    python benchmarks/study_cuda.py … --kinds matched --rival-seeds 42 43      (one of the rivals, two runs of each kind)

Two precisions (bf16, nf4) × ranks 2, 4, 8, 16 × three seeds, 200 steps of 4 rows, evaluation on 100 held-out rows, no generation on
either side. Ours: ``loracle run`` as a process of its own, wall clock from its start, reload checks and report included. The rivals:
a process that trains runs in turn (load, attach, train, evaluate, save); of its 24 runs one of each kind and seed is measured in full at
each turn and the rest is extrapolated, which the file says. Both sides take turns, and find their libraries
compiled to bytecode, as pip leaves them. ``--write-reduced FILE`` only writes the rows that are used.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from gpu import results, study_files

SRC = Path(__file__).resolve().parent


def environment(place: Path) -> dict[str, str]:
    """This process's environment with absolute import paths, no hub, and bytecode that is kept in ``place``: some machines keep none,
    and every process compiles torch anew."""
    paths = [str(SRC), *(str(Path(p).resolve()) for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p)]
    found = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONPYCACHEPREFIX": str(place / "bytecode")}
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return kept | found | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def compile_libraries(place: Path) -> None:
    """What both sides import, once, as an installation does."""
    subprocess.run(
        [sys.executable, "-m", "loracle.worker", "--spare"],
        env=environment(place),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    modules = "gpu.rival_runs, loracle.report.write, loracle.diagnose.inspect"
    subprocess.run([sys.executable, "-c", f"import {modules}"], env=environment(place), capture_output=True, check=True)


def ours(study: Path, folder: Path, sets: list[str]) -> dict[str, Any]:
    """One whole study by the command line: seconds, and where they go."""
    shutil.rmtree(folder, ignore_errors=True)
    extra = [word for setting in sets for word in ("--set", setting)]
    log = folder.with_suffix(".log")
    started, begun = time.time(), time.perf_counter()
    with open(log, "w", encoding="utf-8") as out:
        command = [sys.executable, "-m", "loracle", "run", str(study), "--out", str(folder), *extra]
        code = subprocess.run(
            command, env=environment(folder.parent), stdout=out, stderr=subprocess.STDOUT, check=False
        ).returncode
    wall = time.perf_counter() - begun
    if code not in (0, 3):  # 3: some runs did not end as they should
        print(log.read_text(encoding="utf-8")[-3000:], flush=True)
        return {"wall_s": wall, "exit_code": code, "parts": {}, "runs": {}, "cohorts": []}
    return {"wall_s": round(wall, 2), "exit_code": code, "parts": parts(folder, started, wall), **outcome(folder)}


def parts(folder: Path, started: float, wall: float) -> dict[str, float]:
    """Seconds of the study's stretches, from its records and the times at which they were written."""
    records = [(path, json.loads(path.read_text())) for path in sorted(folder.glob("**/record.json"))]
    cohorts = [(path, record) for path, record in records if record.get("kind") == "train"]
    planned = (folder / "plan.json").stat().st_mtime - started
    trained = max(path.stat().st_mtime for path, _ in cohorts) - started
    found = {"until the plan (start, inspect)": planned, "cohorts in all": trained - planned}
    named = {"wall_s": "training", "evaluate_s": "evaluation", "reload_s": "reload checks and records"}
    seconds = {
        key for _, record in cohorts for key, value in record.items() if key.endswith("_s") and value is not None
    }
    for key in sorted(seconds):
        found[f"of it {named.get(key, key)}"] = sum(record.get(key) or 0.0 for _, record in cohorts)
    known = sum(found.get(f"of it {named[key]}", 0.0) for key in named)
    found["of it start-up, loading, saving"] = trained - planned - known
    found["after the cohorts (report)"] = wall - trained
    return {name: round(value, 2) for name, value in found.items()}


def outcome(folder: Path) -> dict[str, Any]:
    """How the runs ended, in how many cohorts."""
    records = [json.loads(path.read_text()) for path in sorted((folder / "runs").glob("*/record.json"))]
    states: dict[str, int] = {}
    for record in records:
        states[record["status"]] = states.get(record["status"], 0) + 1
    losses = {record["id"]: record.get("eval_loss") for record in records}
    trained = [json.loads(path.read_text()) for path in sorted(folder.glob("cohorts/*/record.json"))]
    trained = trained or [json.loads(path.read_text()) for path in sorted(folder.glob("jobs/*/record.json"))]
    cohorts = [
        {
            "runs": len(record["runs"]),
            "storage": storage_of(records, record["runs"]),
            "peak_allocated_bytes": record.get("peak_allocated_bytes"),
            "peak_reserved_bytes": record.get("peak_reserved_bytes"),
        }
        for record in trained
        if record.get("kind") == "train"
    ]
    return {"runs": states, "cohorts": cohorts, "eval_losses": losses}


def storage_of(records: list[dict[str, Any]], runs: dict[str, Any]) -> str | None:
    """The storage that a cohort's runs trained in."""
    found = [record["config"].get("storage") for record in records if record["id"] in runs]
    return found[0] if found else None


def rivals(job: dict[str, Any], place: Path) -> dict[str, Any]:
    """The measured sample, in a process of its own: start-up and each run's seconds."""
    place.write_text(json.dumps(job))
    begun = time.perf_counter()
    code = subprocess.run(
        [sys.executable, "-m", "gpu.rival_runs", str(place)], env=environment(place.parent), check=False
    ).returncode
    wall = time.perf_counter() - begun
    found = json.loads(Path(job["out"]).read_text()) if code == 0 else {"warmup_s": 0.0, "runs": []}
    runs = found["runs"]
    start = wall - found["warmup_s"] - sum(run["run_s"] for run in runs)
    return {"wall_s": round(wall, 2), "exit_code": code, "start_s": round(start, 2), "runs": runs}


def extrapolated(samples: list[dict[str, Any]], kind: str, runs: int) -> dict[str, Any] | None:
    """The makespan of all runs, half of them LoRA and half QLoRA, from the measured ones. A process's first run of a kind counts
    once (it plans attention for lengths that it has not seen); the others take what the later ones did, where some were measured."""
    parts: dict[str, Any] = {}
    for what in ("LoRA", "QLoRA"):
        seconds = [[run["run_s"] for run in s["runs"] if run["kind"] == f"{kind} {what}"] for s in samples]
        firsts, later = [s[0] for s in seconds if s], [x for s in seconds for x in s[1:]]
        if not firsts:
            return None
        one = statistics.median(later or firsts)
        parts[what] = (statistics.median(firsts), one, len(firsts) + len(later))
    start = statistics.median(sample["start_s"] for sample in samples if sample["runs"])
    all_of_one = [first + (runs / 2 - 1) * one for first, one, _ in parts.values()]
    (lora_first, lora, loras), (qlora_first, qlora, qloras) = parts["LoRA"], parts["QLoRA"]
    return {
        "settings": kind,
        "makespan_s": round(start + sum(all_of_one), 1),
        "start_s": start,
        "lora_run_s": lora,
        "qlora_run_s": qlora,
        "first_lora_run_s": lora_first,
        "first_qlora_run_s": qlora_first,
        "extrapolated": f"from {loras} LoRA and {qloras} QLoRA runs to {runs}",
    }


def arguments() -> argparse.Namespace:
    """The options; ``--tiny`` shrinks everything."""
    parser = results.options(__doc__, compile="auto")
    parser.add_argument("--data", type=Path, help="Alpaca's file, or one that --write-reduced wrote")
    parser.add_argument("--tokenizer", type=Path, help="a folder with GPT-2's tokenizer files")
    parser.add_argument("--write-reduced", type=Path)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument(
        "--dropout", type=float, default=0.0, help="of ours and the matched rival; the usual recipe has 0.05"
    )
    parser.add_argument("--kinds", nargs="+", choices=("usual", "matched"), default=["usual", "matched"])
    parser.add_argument(
        "--rival-seeds", nargs="+", type=int, default=[42], help="each kind is measured with each of them"
    )
    parser.add_argument("--set", action="append", default=[], help="a setting of loracle run, as its --set takes it")
    asked = parser.parse_args()
    tiny = asked.tiny
    asked.samples, asked.max_length, asked.steps = (40, 128, 5) if tiny else (1000, 512, 200)
    asked.ranks, asked.seeds, asked.batch_size = ([2, 4], [42], 4) if tiny else ([2, 4, 8, 16], [42, 43, 44], 4)
    return asked


def job_of(tree: dict[str, Any], place: Path, asked: argparse.Namespace, device: str) -> dict[str, Any]:
    """The rival's job; the task as its own file says it, without the library's entry."""
    kinds = [
        (f"{kind} {what}", seed) for kind in asked.kinds for seed in asked.rival_seeds for what in ("LoRA", "QLoRA")
    ]
    return {
        "base": tree["base"]["model"],
        "task": {key: value for key, value in tree["task"].items() if key != "name"} | {"format": "alpaca"},
        "device": device,
        "batch_size": asked.batch_size,
        "dropout": asked.dropout,
        "targets": tree["adapter"]["targets"],
        "alpha": 16.0,
        "learning_rate": 2e-4,
        "steps": asked.steps,
        "runs": [[kind, 8 if not asked.tiny else 4, seed] for kind, seed in kinds],
        "cache": str(place / "rival-data"),
        "out": str(place / "rival.json"),
    }


def main() -> None:
    """Both sides in turn, then the files and the table."""
    asked = arguments()
    if asked.write_reduced:
        print(study_files.reduced(asked.data, asked.write_reduced, asked.samples), asked.write_reduced)
        return
    device = results.device_of(asked)
    begun = time.perf_counter()
    mine: list[dict[str, Any]] = []
    theirs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        tokenizer = study_files.base_folder(place / "base", asked.tokenizer, asked.tiny, device)
        rows = study_files.reduced(asked.data, place / "rows.json", asked.samples)
        tree = study_files.study_tree("bench", place / "base", place / "rows.json", asked)
        (place / "study.yaml").write_text(json.dumps(tree))  # YAML holds JSON
        compile_libraries(place)
        sets = [*asked.set, f"run.device={device.type}", f"run.compile={asked.compile}"]
        shown = tree | {"base": {"model": "base"}, "task": tree["task"] | {"data": "rows.json"}}
        facts = {"tokenizer": tokenizer, "rows": rows, "study": shown, "settings": sets}
        facts["bytecode"] = "compiled beforehand, on both sides"
        for repeat in range(asked.repeats):
            mine.append(ours(place / "study.yaml", place / f"study{repeat}", sets))
            print(
                f"  [{time.perf_counter() - begun:5.0f} s] ours: {mine[-1]['wall_s']:.1f} s, {mine[-1]['runs']}",
                flush=True,
            )
            if repeat == 0 or not asked.quick:
                theirs.append(rivals(job_of(tree, place, asked, device.type), place / "job.json"))
                print(f"  [{time.perf_counter() - begun:5.0f} s] rivals: {theirs[-1]['wall_s']:.1f} s", flush=True)
            report(asked, device, mine, theirs, facts)  # a run that is cut keeps what it has


def report(
    asked: argparse.Namespace,
    device: Any,
    mine: list[dict[str, Any]],
    theirs: list[dict[str, Any]],
    facts: dict[str, Any],
) -> None:
    """Write the file, print the table."""
    runs = 2 * len(asked.ranks) * len(asked.seeds)
    good = [m["wall_s"] for m in mine if m["runs"]]
    median = statistics.median(good) if good else None
    estimates = [e for kind in asked.kinds if (e := extrapolated(theirs, kind, runs))]
    for estimate in estimates:
        estimate["over_ours"] = round(estimate["makespan_s"] / median, 2) if median else None
    data = results.header("study", device) | facts | {"runs": runs, "ours": mine, "ours_median_s": median}
    data |= {"rivals": theirs, "estimates": estimates}
    name = "study" if len(asked.kinds) == 2 else f"study-{asked.kinds[0]}"
    written = results.write_json(results.stem(asked.out, name, device, asked.tiny), data)
    lines = [
        (
            f"ours, {runs} runs, measured",
            *(results.number(x) for x in (median, min(good, default=None), max(good, default=None))),
            "",
        )
    ]
    for e in estimates:
        lines.append(
            (
                f"peft, {e['settings']} settings, {e['extrapolated']}",
                results.number(e["makespan_s"]),
                "",
                "",
                results.number(e["over_ours"]),
            )
        )
    print(results.table(("makespan", "seconds", "least", "greatest", "over ours"), lines))
    peaks = [
        (
            f"ours, a cohort of {c['runs']}",
            str(c["storage"]),
            results.mib(c["peak_allocated_bytes"]),
            results.mib(c["peak_reserved_bytes"]),
        )
        for c in mine[-1]["cohorts"]
    ] + [
        (
            f"peft, {r['kind']}",
            r["storage"],
            results.mib(r["peak_allocated_bytes"]),
            results.mib(r["peak_reserved_bytes"]),
        )
        for r in (theirs[-1]["runs"] if theirs else [])
    ]
    print(results.table(("peaks", "storage", "alloc MiB", "reserved MiB"), peaks))
    for name, value in mine[-1]["parts"].items():
        print(f"  {name}: {value:.1f} s")
    print(written)


if __name__ == "__main__":
    main()
