"""Losses over 200 steps, ours against Transformers + PEFT + bitsandbytes: same base, rows, order, initial A, optimizer and schedule.

    python benchmarks/agreement_cuda.py [--model gpt2-demo ...] [--steps 200] [--quick]

For nf4 (both of our storages) and bf16, on the given bases (default: the one in the package, on its public-domain prose) and on
GPT-2 medium with random weights (on rows of few different tokens, so that there is something to learn). Wanted: a mean relative
difference of at most 0.5%. Beside it, on the given bases, the rival against itself with another attention kernel: what rounding alone does.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from gpu import ours, results, rivals, shapes
from gpu.timing import clear

from loracle.adapters.cohort import initial_a
from loracle.adapters.targets import resolve_targets
from loracle.models.linears import linear_map
from loracle.models.load import load_base, meta_model
from loracle.models.source import find, load_config, load_tokenizer
from loracle.spec.study import Cell
from loracle.tasks.collate import pad_token_id
from loracle.tasks.dataset import plain_text
from loracle.tasks.rows import Row
from loracle.train.fit import Fit
from loracle.train.schedule import learning_rates

WANTED = 0.005
RANK = 8
BATCH = 4
TARGETS = {"gpt2": ("c_attn",), "llama": ("q_proj", "k_proj", "v_proj")}
SEED = 42
CONTROL = "(PEFT, eager attention)"
STORAGES = {"nf4": ("quantized", "dequantized"), "bf16": ("unquantized",)}


def our_losses(
    folder: Path, cell: Cell, storage: str, rows: list[Row], compile: str, packing: bool, device: torch.device
) -> tuple[list[float], list[list[int]]]:
    """Our losses step by step, and the rows of each step."""
    assert cell.train.steps
    steps = cell.train.steps
    loaded = load_base(find(str(folder)), cell, device, storage=storage)
    fit_settings = ours.settings(steps, BATCH, compile if device.type == "cuda" else "off", packing)
    run = ours.start(loaded, cell, rows, 1, fit_settings, [SEED], prepared=0)
    fit: Fit = run.fit
    for step in range(steps):
        fit.step(step, fit.batches(step))
    order = [fit.orders[0].take(step * BATCH, BATCH) for step in range(steps)]
    return fit.losses[:, 0].tolist(), order


def their_losses(
    folder: Path,
    cell: Cell,
    recipe: rivals.Recipe,
    rows: list[Row],
    order: list[list[int]],
    pad_id: int,
    device: torch.device,
) -> list[float]:
    """The rival's, from the same start over the same rows."""
    assert cell.train.steps
    base = rivals.load(folder, recipe, device)
    model = rivals.adapt(base, recipe, cell.adapter.targets, RANK, cell.adapter.alpha_value)
    linears = linear_map(meta_model(base.config), base.config.model_type)
    with torch.no_grad():
        for site in resolve_targets(linears, cell.adapter.targets):
            a = model.base_model.model.get_submodule(site.module).lora_A["default"].weight
            a.copy_(initial_a(SEED, site, RANK))
    rates = learning_rates(cell.train, cell.train.steps)
    return rivals.train(model, recipe, ([rows[i] for i in items] for items in order), rates, pad_id, device)


def compare(mine: list[float], theirs: list[float]) -> dict[str, Any]:
    """How far apart two loss curves are."""
    apart = [abs(a - b) / abs(b) for a, b in zip(mine, theirs, strict=True)]
    return {
        "mean_relative_difference": statistics.fmean(apart),
        "greatest_relative_difference": max(apart),
        "last_loss": [mine[-1], theirs[-1]],
        "agrees": statistics.fmean(apart) <= WANTED,
    }


def base_run(
    name: str, folder: Path, rows: list[Row], pad_id: int, asked: Any, device: torch.device, control: bool
) -> list[dict[str, Any]]:
    """All storages of one base; ``control``: also the rival against itself with eager attention."""
    family = "gpt2" if load_config(find(str(folder))).model_type == "gpt2" else "llama"
    found = []
    for precision in asked.precisions:
        cell = ours.cell_of(precision, RANK, TARGETS[family], BATCH, steps=asked.steps)
        recipe = rivals.Recipe(quantized=precision == "nf4")
        theirs: list[float] = []
        for storage in STORAGES[precision][: 1 if asked.quick and not control else None]:
            begun = time.perf_counter()
            mine, order = our_losses(folder, cell, storage, rows, asked.compile, asked.packing, device)
            clear(device)
            if not theirs:
                theirs = their_losses(folder, cell, recipe, rows, order, pad_id, device)
                clear(device)
            pairs = [(storage, mine)]
            if control and storage == STORAGES[precision][-1]:
                other = replace(recipe, attention="eager")
                pairs.append((CONTROL, their_losses(folder, cell, other, rows, order, pad_id, device)))
                clear(device)
            for what, losses in pairs:
                row = {"base": name, "precision": precision, "storage": what, "steps": asked.steps}
                found.append({**row, **compare(losses, theirs), "losses": losses, "peft_losses": theirs})
            print(f"  {name} {precision} {storage}: {time.perf_counter() - begun:.0f} s", flush=True)
    return found


def main() -> None:
    """All bases, then the files and the table."""
    parser = results.options(__doc__)
    parser.add_argument("--model", nargs="*", default=["gpt2-demo"], help="folders of small real bases, or gpt2-demo")
    parser.add_argument("--precisions", nargs="+", choices=tuple(STORAGES), default=list(STORAGES))
    parser.add_argument("--steps", type=int)
    parser.add_argument("--packing", action="store_true", help="ours with rows packed without padding, where it can")
    parser.add_argument("--no-random", action="store_true", help="leave GPT-2 medium with random weights out")
    asked = parser.parse_args()
    asked.steps = asked.steps or (5 if asked.tiny else 200)
    device = results.device_of(asked)
    found: list[dict[str, Any]] = []
    for model in asked.model:
        source = find(model)
        tokenizer = load_tokenizer(source)
        rows = plain_text(tokenizer, 128)
        found += base_run(source.name, Path(source.resolved), rows, pad_token_id(tokenizer), asked, device, True)
    if not asked.no_random:
        with tempfile.TemporaryDirectory() as temporary:
            config = shapes.config_of("gpt2-medium", asked.tiny)
            folder = shapes.saved(config, Path(temporary) / "base", device)
            rows = shapes.full_rows(config, 32 if asked.tiny else 128, 256, top=64)
            found += base_run("random gpt2-medium", folder, rows, 0, asked, device, False)
    data = results.header("agreement", device) | {"wanted": WANTED, "rank": RANK, "batch_size": BATCH, "rows": found}
    path = results.stem(asked.out, "agreement", device, asked.tiny)
    written = results.write_json(path, data)
    lines = [
        (
            f"{row['base']}, {row['precision']} {row['storage']}",
            f"{row['mean_relative_difference']:.3%}",
            f"{row['greatest_relative_difference']:.3%}",
            f"{row['last_loss'][0]:.4f}",
            f"{row['last_loss'][1]:.4f}",
            "yes" if row["agrees"] else "NO",
        )
        for row in found
    ]
    print(results.table(("ours against PEFT", "mean", "greatest", "our last", "their last", "agrees"), lines))
    print(written)
    if not all(row["agrees"] for row in found if row["storage"] != CONTROL):
        raise SystemExit("the losses differ by more than is allowed")


if __name__ == "__main__":
    main()
