"""``python -m loracle.worker DIR``, or ``--spare`` and DIR on stdin: claim the folder, do its job, write its record.

Contract: docs/jobs.md.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from loracle.base.errors import EXIT_SIGTERM, LoracleError, SpecError, one_line
from loracle.base.log import logger, to_stderr
from loracle.store.claims import claim
from loracle.store.files import SCHEMA, read_json, write_json
from loracle.store.layout import StudyFolder
from loracle.worker.imports import importing

CLAIM_WAIT_S = 60.0
NOTHING_LEFT = (
    "inspect",
    "train",
    "probe",
    "diagnose",
    "sensitivity",
    "allocation",
)  # jobs that leave nothing to do at the interpreter's end


class Stop:
    """Whether an end was asked for. Until ``now`` a signal only sets the flag; after it, it ends the process."""

    def __init__(self) -> None:
        self.asked = False
        self.at_once = False
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the study's to handle

    def __call__(self) -> bool:
        return self.asked

    def now(self) -> None:
        """From here on a signal ends the process: everything worth keeping is on disk."""
        self.at_once = True
        if self.asked:
            raise SystemExit(EXIT_SIGTERM)

    def _on_signal(self, number: int, frame: object) -> None:
        self.asked = True
        if self.at_once:
            raise SystemExit(EXIT_SIGTERM)


def die_with_parent() -> None:
    """SIGTERM when the parent dies (Linux), so that no worker outlives its study."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    parent = os.environ.get("LORACLE_PARENT")
    if parent is not None and os.getppid() != int(parent):
        raise SystemExit(EXIT_SIGTERM)


def say(phase: str, **facts: Any) -> None:
    """One progress line on stdout; a reader that is gone means the parent is."""
    try:
        print(json.dumps({"event": "progress", "phase": phase, **facts}), flush=True)
    except BrokenPipeError:
        os._exit(EXIT_SIGTERM)


OUT_OF_MEMORY = ("can't allocate memory", "cannot allocate memory", "out of memory", "_alloc_failed", "bad_alloc")


def is_out_of_memory(error: BaseException) -> bool:
    """The ways of CUDA, its libraries and the CPU's allocators of saying so."""
    text = str(error).lower()
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or any(words in text for words in OUT_OF_MEMORY)
    )


def work(folder: Path, job: dict[str, Any], stop: Stop) -> dict[str, Any]:
    """Do the job; what can be said of a failure goes into the record."""
    kinds: dict[str, Callable[[], dict[str, Any]]] = {
        "inspect": lambda: _inspect(folder, job),
        "train": lambda: _train(folder, job, stop),
        "diagnose": lambda: _diagnose(folder, job),
        "sensitivity": lambda: _sensitivity(folder, job),
        "allocation": lambda: _allocation(folder, job),
        "probe": lambda: _probe(folder, job),
        "judge": lambda: _judge(folder, job, stop),
        "evaluate": lambda: _evaluate(folder, job, stop),
    }
    if job.get("kind") not in kinds:
        return {"status": "failed", "reason": f"unknown kind of job: {job.get('kind')!r}"}
    try:
        if job.get("memory_fraction") is not None:
            from loracle.worker.limits import limit_memory

            limit_memory(job["memory_fraction"], job.get("device", "auto"))
        return kinds[job["kind"]]()
    except LoracleError as error:
        return {"status": "failed", "reason": one_line(error), "usage": isinstance(error, SpecError)}
    except Exception as error:
        logger.exception("the job failed")
        return {"status": "oom" if is_out_of_memory(error) else "failed", "reason": one_line(error)}


def _study_folder(folder: Path) -> StudyFolder:
    return StudyFolder(folder.parent.parent)


def _inspect(folder: Path, job: dict[str, Any]) -> dict[str, Any]:
    with importing():
        from loracle.diagnose.inspect import inspect

    return inspect(_study_folder(folder), job, say)


def _train(folder: Path, job: dict[str, Any], stop: Stop) -> dict[str, Any]:
    with importing():
        from loracle.worker.train import TrainJob

    return TrainJob(_study_folder(folder), folder, job, say, stop).run()


def _diagnose(folder: Path, job: dict[str, Any]) -> dict[str, Any]:
    with importing():
        from loracle.diagnose.pairs import diagnose

    return diagnose(_study_folder(folder), job)


def _sensitivity(folder: Path, job: dict[str, Any]) -> dict[str, Any]:
    with importing():
        from loracle.diagnose.sweeps import sensitivity

    return sensitivity(_study_folder(folder), job, say)


def _allocation(folder: Path, job: dict[str, Any]) -> dict[str, Any]:
    with importing():
        from loracle.diagnose.importance import importance

    return importance(_study_folder(folder), job, say)


def _probe(folder: Path, job: dict[str, Any]) -> dict[str, Any]:
    with importing():
        from loracle.diagnose.probe import probe

    return probe(_study_folder(folder), job, say)


def _judge(folder: Path, job: dict[str, Any], stop: Stop) -> dict[str, Any]:
    with importing():
        from loracle.evaluate.judging.local import judge_job

    return judge_job(_study_folder(folder), job, say, stop)


def _evaluate(folder: Path, job: dict[str, Any], stop: Stop) -> dict[str, Any]:
    with importing():
        from loracle.worker.score import score_job

    return score_job(folder, job, say, stop)


def prepare_torch(threads: int | None) -> None:
    """Fixed thread count; deterministic algorithms on a CPU, where equal bits are promised: on a GPU they cost time and promise none."""
    with importing():
        import torch

    if threads:
        torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(not torch.cuda.is_available(), warn_only=True)
    warnings.filterwarnings("ignore", message=".*does not have a deterministic implementation.*")
    # cuDNN's attention makes a plan for every new length (some 100 ms each) and is not deterministic
    torch.backends.cuda.enable_cudnn_sdp(False)


def main(arguments: list[str]) -> int:
    """Exit code as docs/jobs.md says."""
    if arguments == ["--doctor"]:
        from loracle.diagnose.machine import facts

        print(json.dumps(facts()))
        return 0
    die_with_parent()
    if arguments == ["--spare"]:
        from loracle.worker.spare import wait_for_job

        given = wait_for_job()
        if given is None:
            return 0
        arguments = [str(given)]
    stop = Stop()
    to_stderr()
    folder = Path(arguments[0]).resolve()
    try:
        job = read_json(folder / "job.json")
        with claim(folder / "claim.lock", f"job {folder.name}", CLAIM_WAIT_S):
            os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
            prepare_torch(job.get("threads"))
            record = work(folder, job, stop)
            write_json(
                folder / "record.json", {"schema": SCHEMA, "kind": job.get("kind"), "id": job.get("id"), **record}
            )
    except LoracleError as error:
        logger.error(one_line(error))
        return error.exit_code
    code = EXIT_SIGTERM if record["status"] == "interrupted" else 0
    if job.get("kind") in NOTHING_LEFT and not job.get("track"):
        leave(code)
    return code


def leave(code: int) -> NoReturn:
    """End at once: all that matters is on disk, and to take down an interpreter with torch in it takes a second or two."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
