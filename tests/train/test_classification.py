"""Classification heads in a cohort: each member's own, as PEFT and Transformers train and load them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from loracle.adapters.cohort import Cohort, Member, attach
from loracle.adapters.peft_files import save_adapter
from loracle.adapters.targets import resolve_targets
from loracle.evaluate.loss import final_losses, item_losses
from loracle.models.load import LoadedBase, load_base
from loracle.models.source import find, load_tokenizer
from loracle.spec.study import Cell, Task, Train
from loracle.tasks.dataset import build
from loracle.tasks.rows import Row
from loracle.train.fit import Fit, FitSettings

CPU = torch.device("cpu")
TASK = Task(name="banking77-10", type="classification", samples=80, eval_samples=20)
WIDTH = 192


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """80 + 20 rows of the built-in task with their labels."""
    return build(TASK, load_tokenizer(find("gpt2-demo")), "test", tmp_path_factory.mktemp("data"))


def classifier(labels: tuple[str, ...], precision: str = "fp32", double: bool = False) -> LoadedBase:
    loaded = load_base(find("gpt2-demo"), Cell(task=TASK, precision=precision), CPU, labels=labels)  # type: ignore[arg-type]
    if double:
        loaded.model.to(torch.float64)
    return loaded


def fitted(loaded: LoadedBase, rows: list[Row], members: list[tuple[int, int]], steps: int) -> tuple[Fit, Cohort]:
    """A cohort of (rank, seed) members trained for ``steps``."""
    sites = tuple(resolve_targets(loaded.linears, ("c_attn", "c_proj")))
    head = (10, WIDTH)
    own = [Member(f"m{seed}", sites, rank, 2.0 * rank, 0.0, seed, seed, head=head) for rank, seed in members]
    cohort = attach(loaded.model, own, next(loaded.model.parameters()).dtype, CPU)
    train = Train(learning_rate=2e-3)
    fit = Fit(
        cohort, rows, [train] * len(own), [seed for _, seed in members], FitSettings(steps, 4, 1, 1, identity="t")
    )
    for step in range(steps):
        fit.step(step, fit.batches(step))
    return fit, cohort


def test_heads_do_not_feel_their_neighbours(data: Any) -> None:
    together, cohort = fitted(classifier(data.labels, double=True), data.train, [(4, 1), (2, 2), (8, 3)], 15)
    for k, member in enumerate([(4, 1), (2, 2), (8, 3)]):
        alone, single = fitted(classifier(data.labels, double=True), data.train, [member], 15)
        assert (together.losses[:, k] - alone.losses[:, 0]).abs().max() < 1e-8
        assert (cohort.head(k) - single.head(0)).abs().max() < 1e-5  # type: ignore[operator]
        assert cohort.members[k].trainable_params == single.flat.data.shape[1]


def test_training_is_that_of_peft_and_transformers(data: Any, tmp_path: Path) -> None:
    """The same start, data and optimizer through ``AutoModelForSequenceClassification`` + PEFT: the same losses."""
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    loaded = classifier(data.labels, double=True)
    start, cohort = fitted(loaded, data.train, [(4, 1)], 0)
    save(tmp_path / "start", loaded, cohort)
    plain = AutoModelForSequenceClassification.from_pretrained(
        loaded.source.resolved, num_labels=10, dtype=torch.float64, pad_token_id=1
    )
    peft = PeftModel.from_pretrained(plain, tmp_path / "start", is_trainable=True, autocast_adapter_dtype=False)
    peft.to(torch.float64).eval()
    optimizer = torch.optim.AdamW([p for p in peft.parameters() if p.requires_grad], lr=2e-3, weight_decay=0.0)
    del start
    fit = Fit(cohort, data.train, [Train(learning_rate=2e-3, schedule="constant", max_grad_norm=None)], [1],
              FitSettings(12, 4, 1, 1, identity="t"))  # fmt: skip
    for step in range(12):
        rows = [data.train[i] for i in fit.orders[0].take(step * 4, 4)]
        logits = torch.cat([peft(input_ids=torch.tensor([row.input_ids])).logits for row in rows])
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor([row.label_id for row in rows]))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        fit.step(step, fit.batches(step))
        assert abs(float(fit.losses[step, 0]) - float(loss.detach())) < 1e-8, step


def save(folder: Path, loaded: LoadedBase, cohort: Cohort, k: int = 0) -> None:
    save_adapter(folder, cohort.adapter(k), cohort.members[k], loaded.linears, base="x", revision=None, head=cohort.head(k))  # fmt: skip


def test_evaluation_side_by_side_is_each_alone_and_predicts(data: Any) -> None:
    loaded = classifier(data.labels)
    _, cohort = fitted(loaded, data.train, [(4, 1), (2, 2)], 10)
    side, each = item_losses(cohort, data.eval, 1, CPU), final_losses(cohort, data.eval, 1, CPU)
    assert side.predicted is not None
    assert each.predicted is not None
    assert abs(side.sums - each.sums).max() < 1e-4
    assert (side.predicted == each.predicted).all()
    assert side.tokens.tolist() == [1] * len(data.eval)
    assert len({*side.predicted[0].tolist()}) > 1


def test_peft_counts_the_replaced_head_too(data: Any, tmp_path: Path) -> None:
    """DialoGPT-medium's shape, 77 labels, r = 16 on c_attn and c_proj: what a published notebook prints."""
    from peft import PeftModel
    from transformers import GPT2Config, GPT2ForSequenceClassification

    from loracle.models.linears import linear_map

    config = GPT2Config(n_embd=1024, n_layer=24, n_head=16, vocab_size=50257, num_labels=77)
    with torch.device("meta"):
        model = GPT2ForSequenceClassification(config)
    linears = linear_map(model, "gpt2")
    sites = tuple(resolve_targets(linears, ("c_attn", "c_proj")))
    member = Member("m", sites, 16, 32.0, head=(77, 1024))
    assert member.trainable_params == 4_404_224
    pairs = {site: (torch.zeros(16, site.d_in), torch.zeros(site.width, 16)) for site in sites}
    save_adapter(tmp_path, pairs, member, linears, base="x", revision=None, head=torch.zeros(77, 1024))
    peft = PeftModel.from_pretrained(model, tmp_path, low_cpu_mem_usage=True, is_trainable=True)
    assert peft.get_nb_trainable_parameters() == (4_404_224, 359_306_240)
