"""H2: "matrices differ in sensitivity to quantization; Q and V differ from K and the MLP", by two kinds of evidence.

The sweep quantizes one matrix of the untrained base at a time. The unit is a layer: all kinds of one layer lie beside each
other in it, so kinds are compared within layers. Layers of one base are no sample of models, so nothing follows for others.

    matrices differ      Friedman's test over layers, as F (Iman & Davenport 1980)
    {q, v} against k     mean difference of the loss added, over layers, Student's interval; the same against the MLP.
                         Both must be shown, so neither needs a correction (intersection-union)

The other kind is what quantization costs where other matrices are adapted: differences between target variants, paired by
seed, crossed with items, Holm over pairs of variants. There the unit is the seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from loracle.verdict import variants
from loracle.verdict.entries import Entry
from loracle.verdict.evidence import StudyEvidence
from loracle.verdict.paired import MIN_SEEDS, Array, Interval
from loracle.verdict.parts import NOT_ASKED, PARTLY, REJECTED, SUPPORTED, UNDECIDED, Part, combine, whole

CLAIM = "matrices differ in sensitivity to quantization; Q and V differ from K and the MLP"
ATTENTION = ("q", "k", "v", "o")
MLP = ("gate", "up", "down", "gate_up")
LEVEL = 0.95
BOTH = "both together"
SWEEPS = ("diagnose/sensitivity_sweeps.json",)
BEYOND = "One base and one text: layers are the units, so this says nothing of other models."
Row = Mapping[str, Any]


def answer(found: StudyEvidence, bundle: Any) -> list[Entry]:
    """H2 as a whole, then its parts: two of each sweep, one of the target variants of each precision."""
    sweeps = untrained(found)
    parts = [part for sweep in sweeps for part in (differ(sweep), contrast(sweep))]
    parts += variants.parts(found, bundle)
    if not parts:
        text = "Not asked: no matrix was quantized by itself (question sensitivity), and no two quantized cells differ in targets alone."
        return [whole("H2", CLAIM, NOT_ASKED, text)]
    state = combine([part.verdict for part in parts])
    if not sweeps and state == SUPPORTED:
        state = PARTLY  # variants share matrices: they cannot tell which matrix it is
    return [whole("H2", CLAIM, state, _words(state, bool(sweeps)), parts), *(part.entry("H2") for part in parts)]


def untrained(found: StudyEvidence) -> list[Row]:
    """The sweeps of whole untrained bases that were made; those beside them (after training, on fewer tokens) are left out."""
    every = (found.sensitivity or {}).get("sweeps") or []
    return [s for s in every if s.get("units") and s.get("listed", True) and s.get("when", "before") == "before"]


def by_layer(sweep: Row) -> dict[int, dict[str, Row]]:
    """``{layer: {kind: unit}}`` of single matrices, and of slices of fused ones (q, k, v of ``c_attn``)."""
    found: dict[int, dict[str, Row]] = {}
    for unit in sweep["units"]:
        if (
            unit.get("unit") in ("matrix", "slice")
            and unit.get("layer") is not None
            and unit.get("kind") in ATTENTION + MLP
        ):
            found.setdefault(int(unit["layer"]), {}).setdefault(str(unit["kind"]), unit)
    return dict(sorted(found.items()))


def differ(sweep: Row) -> Part:
    """Whether the kinds of matrices differ in the loss that quantizing one of them adds."""
    layers = by_layer(sweep)
    kinds = [k for k in ATTENTION + MLP if layers and all(k in layer for layer in layers.values())]
    whole_layers = [n for n, layer in layers.items() if all(_known(layer[k]) for k in kinds)]
    claim = "kinds of matrices differ in the loss that quantizing one of them adds"
    if len(kinds) < 3 or len(whole_layers) < MIN_SEEDS:
        text = f"{len(kinds)} kinds in {len(whole_layers)} layers; the test needs three of each. {BEYOND}"
        return Part(
            "matrices differ",
            claim,
            UNDECIDED,
            text,
            given={"n": len(whole_layers)},
            records=SWEEPS,
            scope=_scope(sweep),
        )
    values = np.array([[float(layers[n][k]["delta_loss"]) for k in kinds] for n in whole_layers])
    f, p = friedman(values)
    means = dict(zip(kinds, values.mean(axis=0).tolist(), strict=True))
    shown = ", ".join(f"{k} {m:+.4f}" for k, m in sorted(means.items(), key=lambda item: -item[1]))
    state = SUPPORTED if p < 1 - LEVEL else UNDECIDED
    text = f"Mean loss added (nats per token) by kind: {shown}; Friedman's test over {len(values)} layers: F = {f:.3g}, p = {p:.2g}."
    text += " A difference that is not shown may still be there." if state == UNDECIDED else ""
    text += f"{_left_out(layers, whole_layers)} {BEYOND}"
    given = {"estimate": max(means.values()) - min(means.values()), "n": len(values), "level": LEVEL, "margin": 0.0}
    return Part("matrices differ", claim, state, text, "delta_loss_spread", given, records=SWEEPS, scope=_scope(sweep))


def friedman(values: Array) -> tuple[float, float]:
    """F and p of Friedman's test on ``values [layers, kinds]``, in Iman and Davenport's form, which holds with few layers."""
    n, k = values.shape
    if not np.any(np.ptp(values, axis=1)):
        return 0.0, 1.0
    chi2 = float(stats.friedmanchisquare(*values.T).statistic)
    rest = n * (k - 1) - chi2
    if rest <= 1e-9:
        return float("inf"), 0.0
    f = (n - 1) * chi2 / rest
    return f, float(stats.f.sf(f, k - 1, (k - 1) * (n - 1)))


def contrast(sweep: Row) -> Part:
    """Whether quantizing Q or V adds another loss than quantizing K, and than a matrix of the MLP."""
    layers = by_layer(sweep)
    groups = {"k": ("k",), "the MLP": MLP, BOTH: ("k", *MLP)}
    taken = {name: _differences(layers, kinds) for name, kinds in groups.items()}
    intervals = {name: _interval(values) for name, values in taken.items()}
    shown = [name for name in ("k", "the MLP") if (found := intervals[name]) and not found[0] <= 0 <= found[1]]
    state = SUPPORTED if len(shown) == 2 else PARTLY if shown else UNDECIDED
    n = len(taken[BOTH])
    text = f"Loss added by q or v less that of {_figures('k', taken, intervals)}; of {_figures('the MLP', taken, intervals)};"
    text += f" of {_figures(BOTH, taken, intervals)}. Mean over {n} layer{'' if n == 1 else 's'}, nats per token, one matrix each."
    text += _sizes(layers)
    text += " A difference that is not shown may still be there." if state != SUPPORTED else ""
    both = taken[BOTH]
    given = {
        "estimate": float(np.mean(both)) if len(both) else None, "interval": intervals[BOTH], "n": n, "level": LEVEL, "margin": 0.0,
    }  # fmt: skip
    claim = "quantizing Q or V adds another loss than quantizing K, and than quantizing a matrix of the MLP"
    return Part(
        "Q and V against K and the MLP",
        claim,
        state,
        f"{text} {BEYOND}",
        "delta_loss_difference",
        given,
        records=SWEEPS,
        scope=_scope(sweep),
    )


def _differences(layers: Mapping[int, Mapping[str, Row]], others: Sequence[str]) -> Array:
    """``[layers]``: mean loss added by q and v less that by the others, where all of a layer's are known."""
    found = []
    for layer in layers.values():
        left = [layer[k] for k in ("q", "v") if k in layer]
        right = [layer[k] for k in others if k in layer]
        if len(left) == 2 and right and all(map(_known, [*left, *right])):
            found.append(np.mean([u["delta_loss"] for u in left]) - np.mean([u["delta_loss"] for u in right]))
    return np.asarray(found, float)


def _interval(values: Array) -> Interval | None:
    """Student's over layers; None below three."""
    if len(values) < MIN_SEEDS:
        return None
    half = (
        float(stats.t.ppf(0.5 + LEVEL / 2, len(values) - 1))
        * float(np.std(values, ddof=1))
        / float(np.sqrt(len(values)))
    )
    return float(np.mean(values)) - half, float(np.mean(values)) + half


def _figures(name: str, taken: Mapping[str, Array], intervals: Mapping[str, Interval | None]) -> str:
    if not len(taken[name]):
        return f"{name}: not measured"
    found = intervals[name]
    around = (
        f" ({100 * LEVEL:.0f}% interval {found[0]:+.4f} to {found[1]:+.4f})"
        if found
        else " (no interval below three layers)"
    )
    return f"{name} {np.mean(taken[name]):+.4f}{around}"


def _sizes(layers: Mapping[int, Mapping[str, Row]]) -> str:
    """A matrix of the MLP is often several times as large: that is part of what it costs."""
    known = [layer for layer in layers.values() if "q" in layer and any(k in layer for k in MLP)]
    if not known:
        return ""
    ratio = np.mean(
        [np.mean([layer[k]["params"] for k in MLP if k in layer]) / layer["q"]["params"] for layer in known]
    )
    return f" A matrix of the MLP has {ratio:.3g} times the weights of q."


def _left_out(layers: Mapping[int, Any], used: Sequence[int]) -> str:
    left = [str(n) for n in layers if n not in used]
    return f" Layers {', '.join(left)} are left out: a loss is not finite." if left else ""


def _known(unit: Row) -> bool:
    value = unit.get("delta_loss")
    return isinstance(value, int | float) and bool(np.isfinite(value))


def _scope(sweep: Row) -> dict[str, Any]:
    return {"base": sweep.get("base"), "codec": sweep.get("codec")}


def _words(state: str, swept: bool) -> str:
    text = {
        SUPPORTED: "Every part is shown.",
        PARTLY: "Some parts are shown, others not.",
        REJECTED: "What differences there are stay within the margin.",
        UNDECIDED: "No part is shown; that is no evidence that matrices are alike.",
    }.get(state, "No verdict.")
    return text if swept else f"{text} Which matrix it is only a sweep can tell (question sensitivity)."
