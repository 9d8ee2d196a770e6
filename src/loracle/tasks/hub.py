"""Hub data sets through ``datasets``: pinned by their content, and an honest line at once where there is no network."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from loracle.base.errors import DataError, one_line
from loracle.base.names import suggest
from loracle.tasks.readers import Table, table

TIMEOUT_S = 8.0


def read_hub(name: str, subset: str | None, split: str) -> Table:
    """One split of a hub data set; class labels come as their names. Works from the local cache with no network."""
    reachable = _reachable(name)
    import datasets

    datasets.disable_progress_bars()
    try:
        with _offline(not reachable):
            data = datasets.load_dataset(name, subset, split=split)
    except Exception as error:
        raise DataError(_explain(name, subset, split, reachable, error), "task.data") from None
    names = {key: feature.names for key, feature in data.features.items() if isinstance(feature, datasets.ClassLabel)}
    rows = [{key: _class_name(names.get(key), value) for key, value in row.items()} for row in data]
    return table(f"{name} ({split})", rows)


def _class_name(names: list[str] | None, value: Any) -> Any:
    if names is None or not isinstance(value, int):
        return value
    return names[value] if 0 <= value < len(names) else None  # -1 marks the hidden labels of GLUE's test sets


def _reachable(name: str) -> bool:
    """Whether the hub answers; a hub that answers "no such data set" is an error."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        HfApi().dataset_info(name, timeout=TIMEOUT_S)
    except GatedRepoError:
        problem = f"{name} is gated on the hub: accept its terms there and log in (hf auth login)"
        raise DataError(problem, "task.data") from None
    except (RepositoryNotFoundError, HFValidationError):
        problem = f"{name}: no such file, and no such data set on the hub (or it is private)"
        raise DataError(problem, "task.data") from None
    except HfHubHTTPError as error:
        return error.response is not None and error.response.status_code < 500
    except Exception:  # no route, no DNS, a proxy's refusal: each HTTP library has its own name for it
        return False
    return True


@contextmanager
def _offline(active: bool) -> Iterator[None]:
    """Keep ``datasets`` and ``huggingface_hub`` from retrying a network that is not there."""
    import datasets.config
    import huggingface_hub.constants as hub

    before = datasets.config.HF_HUB_OFFLINE, hub.HF_HUB_OFFLINE
    if active:
        datasets.config.HF_HUB_OFFLINE = hub.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, hub.HF_HUB_OFFLINE = before


def _explain(name: str, subset: str | None, split: str, reachable: bool, error: Exception) -> str:
    text = " ".join(str(error).split())
    if "BuilderConfig" in text or "Config name is missing" in text:
        given = f"'{subset}' is not one" if subset else "name one"
        found = re.findall(r"'([\w.-]+)'", text.split("vailable", 1)[-1])
        return f"{name} has several configurations: {given} under task.subset ({', '.join(found[:12])})"
    if "nknown split" in text:
        known = re.findall(r"'([\w.-]+)'", text.split("Should be one of", 1)[-1])
        return f"{name} has no split '{split}', {suggest(split, known)} (task.split, task.eval_split)"
    if "scripts are no longer supported" in text:
        return f"{name} needs a loading script, which is never run: download it and give a data file as task.data"
    if not reachable:
        return (
            f"{name}: no such file and no such data set reachable (no network or offline, and not in the local cache): "
            "give the path of a data file"
        )
    return f"{name} could not be loaded from the hub ({one_line(error, 200)})"
