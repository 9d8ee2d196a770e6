"""What to keep finer in a quantized base: the matrices that suffer most, as many as a budget pays for, measured together.

The order is that of the sweep (``sensitivity.py``, one matrix at a time). What the rest then costs is measured, not added up:
matrices interact. The first set in that order which costs hardly more than the best is chosen. Greedy, one pass over the text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from loracle.adapters.batch import Row
from loracle.diagnose.sensitivity import Sweep, Trial, tried, worst_first
from loracle.diagnose.units import Codec, Swapper, Unit
from loracle.models.census import predicted_bits
from loracle.models.linears import Linear
from loracle.models.load import LoadedBase
from loracle.spec.mixing import Mixed, parse_budget
from loracle.spec.study import UNQUANTIZED

MATERIAL = 0.02  # of what quantizing everything costs: what costs less is not worth finer weights
LONGEST = 24  # sets that are tried


def mix(
    loaded: LoadedBase, codec: Codec, found: Sweep, mixed: Mixed, margin: float, rows: Sequence[Row], pad_id: int
) -> dict[str, Any]:
    """The choice as ``diagnose/mixed_precision.json`` has it: ``needed``, ``kept``, ``precision``, ``path``, ``reason``.

    ``margin``: the relative loss (a log ratio) that quantizing may cost; within it nothing needs keeping.
    """
    whole = next(unit for unit in found.units if unit["unit"] == "all")
    harm, bits = whole["delta_loss"], _bits(mixed, codec)
    about = {"uniform": {key: whole[key] for key in ("delta_loss", "kl", "agreement")}, "base_loss": found.loss}
    if harm is not None and harm <= margin * found.loss:
        reason = (
            f"{mixed.default} everywhere costs {harm / found.loss:+.1%} of the loss, within the margin of {margin:.0%}"
        )
        return {**about, **_choice(loaded.linears, [], mixed, bits), "needed": False, "reason": reason, "path": []}
    sets = candidates([u for u in found.units if u["unit"] == "matrix"], loaded.linears, mixed, bits, harm)
    if not sets:
        reason = f"no matrix that costs {MATERIAL:.0%} of the harm fits into {mixed.budget}: allow more, or another precision"
        return {**about, **_choice(loaded.linears, [], mixed, bits), "needed": True, "reason": reason, "path": []}
    swappers = Swapper(loaded.model, codec), Swapper(loaded.model, replace(codec, name=mixed.sensitive))
    figures = tried(loaded, [_trial(loaded.linears, swappers, kept) for kept in sets], rows, pad_id).units
    path = [
        {**_share(loaded.linears, kept, mixed, bits), "added": kept[-1], **one}
        for kept, one in zip(sets, figures, strict=True)
    ]
    chosen = sets[_enough([step["delta_loss"] for step in path], harm)]
    return {**about, **_choice(loaded.linears, chosen, mixed, bits), "needed": True, "reason": None, "path": path}


def candidates(
    matrices: Sequence[dict[str, Any]],
    linears: Sequence[Linear],
    mixed: Mixed,
    bits: Mapping[str, float],
    harm: float,
) -> list[list[str]]:
    """Growing sets of modules, worst first, each within the budget; what does not fit is passed over."""
    total = sum(x.params for x in linears)
    room = parse_budget(mixed.budget).weights(total, bits, mixed.default, mixed.sensitive)
    sets: list[list[str]] = []
    kept: list[str] = []
    for one in worst_first(matrices):
        costs = one["delta_loss"]
        if costs is not None and costs < MATERIAL * harm:
            break
        if one["params"] <= room and len(sets) < LONGEST:
            room -= one["params"]
            kept = [*kept, one["module"]]
            sets.append(kept)
    return sets


def _enough(losses: Sequence[float], harm: float) -> int:
    """The first set that costs at most ``MATERIAL`` of the harm more than the best."""
    best = min(losses)
    return next(i for i, loss in enumerate(losses) if loss <= best + MATERIAL * harm)


def _trial(linears: Sequence[Linear], swappers: tuple[Swapper, Swapper], kept: Sequence[str]) -> Trial:
    """Everything but ``kept`` quantized; ``kept`` too where the finer precision is itself a quantized one."""
    coarse, finer = swappers
    rest = Unit("rest", None, None, None, tuple((x, None) for x in linears if x.name not in kept))
    own = Unit("kept", None, None, None, tuple((x, None) for x in linears if x.name in kept))
    done = [(coarse, rest)] + ([] if finer.codec.name in UNQUANTIZED else [(finer, own)])
    return Trial(partial(_quantized, done), min(unit.first_layer for _, unit in done))


@contextmanager
def _quantized(units: Sequence[tuple[Swapper, Unit]]) -> Iterator[None]:
    with ExitStack() as stack:
        for swapper, unit in units:
            stack.enter_context(swapper.quantized(unit))
        yield


def _bits(mixed: Mixed, codec: Codec) -> dict[str, float]:
    return {
        name: predicted_bits(name, codec.double_quant, codec.block_size) for name in (mixed.default, mixed.sensitive)
    }


def _share(linears: Sequence[Linear], kept: Sequence[str], mixed: Mixed, bits: Mapping[str, float]) -> dict[str, Any]:
    total = sum(x.params for x in linears)
    share = sum(x.params for x in linears if x.name in kept) / total
    return {
        "kept_share": share,
        "bits_per_weight": share * bits[mixed.sensitive] + (1 - share) * bits[mixed.default],
        "extra_bytes": round(share * total * (bits[mixed.sensitive] - bits[mixed.default]) / 8),
    }


def _choice(linears: Sequence[Linear], kept: Sequence[str], mixed: Mixed, bits: Mapping[str, float]) -> dict[str, Any]:
    """``precision`` is the block that a study file takes."""
    return {
        "kept": list(kept),
        **_share(linears, kept, mixed, bits),
        "precision": {"default": mixed.default, **dict.fromkeys(kept, mixed.sensitive)} if kept else mixed.default,
    }
