"""Licences as the records have them: in the Hub's words where they are known to it, never guessed.

A licence that is not stated is unknown. Non-commercial terms of the data or of the base are carried over to the adapter.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from loracle.report.inert import plain
from loracle.spec import Task
from loracle.tasks.library import load_task, task_names

# https://huggingface.co/docs/hub/repositories-licenses
HUB_LICENCES = frozenset((
    "apache-2.0", "mit", "openrail", "bigscience-openrail-m", "creativeml-openrail-m", "bigscience-bloom-rail-1.0",
    "bigcode-openrail-m", "afl-3.0", "artistic-2.0", "bsl-1.0", "bsd", "bsd-2-clause", "bsd-3-clause",
    "bsd-3-clause-clear", "c-uda", "cc", "cc0-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0",
    "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nd-4.0",
    "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0",
    "cdla-sharing-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0", "wtfpl", "ecl-2.0", "epl-1.0", "epl-2.0",
    "etalab-2.0", "eupl-1.1", "eupl-1.2", "agpl-3.0", "gfdl", "gpl", "gpl-2.0", "gpl-3.0", "lgpl", "lgpl-2.1",
    "lgpl-3.0", "isc", "h-research", "intel-research", "lppl-1.3c", "ms-pl", "apple-ascl", "mpl-2.0", "odc-by",
    "odbl", "openmdw-1.0", "openrail++", "osl-3.0", "postgresql", "ofl-1.1", "ncsa", "unlicense", "zlib", "pddl",
    "lgpl-lr", "deepfloyd-if-license", "fair-noncommercial-research-license", "llama2", "llama3", "llama3.1",
    "llama3.2", "llama3.3", "llama4", "gemma",
))  # fmt: skip
UNKNOWN = "unknown"
NOT_STATED = {"", "none", "none stated", "unknown", "not stated", "unspecified", "other"}
_NON_COMMERCIAL = re.compile(r"non[\s-]?commercial|(?:^|[\s-])nc(?:$|[\s-])", re.IGNORECASE)


@dataclass(frozen=True)
class Licence:
    """``words`` as the source says them ("" where it says nothing); ``hub`` is the Hub's identifier, or ``unknown``, ``other``.

    ``likely``: where nothing is said, the words of the library's entry that the rows were read as.
    """

    words: str
    hub: str
    likely: str = ""

    @property
    def known(self) -> bool:
        return self.hub != UNKNOWN

    @property
    def non_commercial(self) -> bool:
        return bool(_NON_COMMERCIAL.search(self.words))

    @property
    def text(self) -> str:
        return self.words if self.known else "unknown (none is stated)"


def licence(stated: Any) -> Licence:
    """What a record states, a list of one included."""
    if isinstance(stated, list | tuple):
        stated = ", ".join(map(str, stated))
    words = plain(stated if stated is not None else "").strip("\"'[] ")
    identifier = re.sub(r"[\s_]+", "-", words.lower())
    if words.lower() in NOT_STATED:
        return Licence("", UNKNOWN)
    return Licence(words, identifier if identifier in HUB_LICENCES else "other")


def licence_of_data(task: Mapping[str, Any]) -> Licence:
    """A task's: as stated; rows of the user's own under a name of the library may be the data that it names, or not."""
    stated, name = licence(task.get("licence")), task.get("name")
    if stated.known or not name:
        return stated
    entry = load_task(Task(name=name)) if name in task_names() else None
    return replace(stated, likely=(entry.licence if entry else None) or "")


def combined(found: Sequence[Licence]) -> str:
    """The identifier for what is made of all of them: non-commercial terms stay, one unknown leaves it unknown, else the
    one that all share; several are ``other``."""
    binding = [one for one in found if one.non_commercial]
    if binding:
        return binding[0].hub
    if not found or not all(one.known for one in found):
        return UNKNOWN
    names = {one.hub for one in found}
    return names.pop() if len(names) == 1 else "other"


def warnings(what: Sequence[tuple[str, Licence]]) -> list[str]:
    """A sentence for each licence that forbids or leaves open what may be done: (name of the thing, licence)."""
    out = []
    for name, one in what:
        if one.non_commercial:
            out.append(
                f"NON-COMMERCIAL: {name} is under {one.words}. An adapter made with it is not for commercial use."
            )
        elif _NON_COMMERCIAL.search(one.likely):
            out.append(
                f"NON-COMMERCIAL, it may be: no licence is stated for the rows of {name}, but the data that this task is named "
                f"for is under {one.likely}. If they are that data, its terms hold for them and for an adapter made with them."
            )
        elif not one.known:
            out.append(
                f"The licence of {name} is unknown: ask its owners before you publish or use what was made with it."
            )
    return out
