"""``proposals/rank_pattern.yaml``: a study that tries the proposed ranks, as ``loracle run`` takes it.

Arms: one rank for all, ranks by spectrum, ranks by gradient, at equal parameters and scale; everything else is the study's own.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loracle.base.errors import SpecError
from loracle.report.evidence import StudyData
from loracle.report.tables_allocation import MEASURES, Proposal, propose
from loracle.spec import parse_study
from loracle.spec.aliases import factor_path, get, open_section, put
from loracle.spec.yaml import write_yaml
from loracle.store.files import write_text
from loracle.verdict.entries import Entry

KEPT = (
    "base",
    "task",
    "precision",
    "double_quant",
    "block_size",
    "compute_dtype",
    "storage",
    "adapter",
    "train",
    "run",
)
ONLY_WHOLE = ("base", "task")  # sections that are varied as a whole


def patterns(found: Proposal) -> dict[str, dict[str, int]]:
    """Measure → ``{layer: rank}`` of the layers whose rank is not the uniform one; measures that change nothing are left out."""
    names = short_names([str(site["name"]) for site in found.sites])
    made = {
        measure: {name: rank for name, rank in zip(names, found.ranks[measure], strict=True) if rank != found.rank}
        for measure in MEASURES
        if measure in found.ranks
    }
    return {measure: pattern for measure, pattern in made.items() if pattern}


def short_names(names: Sequence[str]) -> list[str]:
    """Names without a first part that all share (``transformer.``), as people write them."""
    first = {name.partition(".")[0] for name in names}
    rest = [name.partition(".")[2] for name in names]
    return rest if len(first) == 1 and all(r and not r[0].isdigit() for r in rest) else list(names)


def study_file(data: StudyData, found: Proposal) -> tuple[str | None, str]:
    """(the file's text, or None; why there is none)."""
    arms = patterns(found)
    adapter = (found.cell.raw.get("config") or {}).get("adapter") or {}
    if not arms:
        return None, "neither measure would change a rank"
    if adapter.get("rslora"):
        return None, "rsLoRA's scale follows the rank of each layer, so ranks and scales would change together"
    try:
        tree = _tree(data, found, adapter, list(arms.values()))
        study = parse_study(tree)
    except SpecError as error:
        return None, str(error)
    dumped = study.model_dump(mode="json", exclude_defaults=True)
    said = {
        "base": {"model": study.base.model},
        "task": tree["task"],
        "precision": dumped.get("precision", study.precision),
    }
    text = {"name": study.name, **said, **{key: dumped[key] for key in KEPT if key in dumped and key != "task"}}
    text |= {"adapter": {**dumped["adapter"], "rank": found.rank}, "vary": dumped["vary"]}
    text |= {"seeds": list(study.seeds), "questions": ["allocation"]}
    return _comment(found, list(arms)) + write_yaml(text), ""


def _tree(
    data: StudyData, found: Proposal, adapter: Mapping[str, Any], arms: Sequence[Mapping[str, int]]
) -> dict[str, Any]:
    """The study's own settings with what was varied set as the cell has it."""
    study, config = data.study, found.cell.raw["config"]
    tree: dict[str, Any] = {key: study[key] for key in KEPT if study.get(key) is not None}
    extra = [extra for extra in study.get("cells") or [] if isinstance(extra, Mapping)]
    for factor in dict.fromkeys([*(study.get("vary") or {}), *(name for values in extra for name in values)]):
        path = factor_path(factor, "vary")
        if path in ONLY_WHOLE:
            listed = [*((study.get("vary") or {}).get(factor) or ()), *(x[factor] for x in extra if factor in x)]
            tree[path] = _the_one(path, [tree[path], *listed], config[path])
        else:
            put(tree, path, get(config, path))
    scale = float(adapter["alpha"]) / found.rank
    own = {key: value for key, value in tree.get("adapter", {}).items() if key not in ("rank_pattern", "alpha_pattern")}
    tree["adapter"] = {**own, "rank": found.rank, "alpha": f"{scale:g}r"}
    tree |= {"name": f"{data.name[:100]}-ranks", "seeds": data.seeds, "questions": ["allocation"]}
    return tree | {"vary": {"rank_pattern": [None, *arms]}}


def _the_one(section: str, values: Sequence[Any], config: Mapping[str, Any]) -> Any:
    """Of a varied base or task the value that the cell has."""
    names_in = ("name", "model", "data")
    names = {str(config[key]) for key in names_in if config.get(key)}
    for value in (open_section(section, given) for given in values):
        said = {str(value[key]) for key in names_in if key in value} if isinstance(value, Mapping) else set()
        if names & said:
            return dict(value)
    raise SpecError(f"the {section} of {sorted(names)} is not among the study's own", section)


def _comment(found: Proposal, arms: Sequence[str]) -> str:
    learned = f" ({found.learned.label})" if found.learned else ""
    sizes = [f"one rank, {found.rank}: {found.params():,} trainable parameters"]
    sizes += [f"ranks by {measure}: {found.params(found.ranks[measure]):,}" for measure in arms]
    text = (
        f"Do ranks by layer help, at equal parameters and scale? Proposed for {found.cell.label}. Spectrum: rank in proportion to the "
        f"effective rank of the learned updates{learned}. Gradient: in proportion to the norm of the loss's gradient before training."
    )
    lines = [*textwrap.wrap(text, 108), "Arms, in the order of vary.rank_pattern:", *(f"- {size}" for size in sizes)]
    return "".join(f"# {' '.join(line.split())}\n" for line in lines)


def texts(data: StudyData, entries: Sequence[Entry]) -> list[tuple[str, str]]:
    """(title, what to paste under ``adapter``) of each measure's ranks."""
    found = propose(data, entries)
    return [
        (f"Ranks by {measure}, to paste under adapter", write_yaml({"rank_pattern": pattern}))
        for measure, pattern in (patterns(found) if found else {}).items()
    ]


def proposed(data: StudyData, entries: Sequence[Entry]) -> str | None:
    """The study file's text, or None where nothing is proposed."""
    found = propose(data, entries)
    return study_file(data, found)[0] if found else None


def write(path: Path, text: str | None) -> None:
    """Write the file; where nothing is proposed an older one goes."""
    if text is None:
        path.unlink(missing_ok=True)
    else:
        write_text(path, text)
