"""Greedy generation for all members at once: left padding, one KV cache, the head on the last position only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from loracle.adapters.alone import Alone
from loracle.adapters.forward import Answerer, backbone, head_logits
from loracle.evaluate.loss import batches_by_length
from loracle.tasks.collate import collate_prompts


@torch.no_grad()
def greedy(
    who: Answerer,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    eos_ids: Sequence[int],
    pad_id: int,
    device: torch.device,
    base: bool = False,
    alone: int | None = None,
) -> list[list[list[int]]]:
    """``[K][n]`` lists of generated ids, without the final eos.

    With ``base`` the untrained base answers, with ``alone`` that member: K = 1.
    """
    if isinstance(who, Alone) and who.virtual:
        return [[who.generate(prompt, max_new_tokens, eos_ids, pad_id) for prompt in prompts]]
    with who.answering(base, alone) as members:
        out: list[list[list[int]]] = [[[] for _ in prompts] for _ in range(members)]
        for items in batches_by_length([len(p) + max_new_tokens for p in prompts], members, device.type):
            answers = _batch(who, [prompts[i] for i in items] * members, max_new_tokens, set(eos_ids), pad_id, device)
            for j, answer in enumerate(answers):
                out[j // len(items)][items[j % len(items)]] = answer
    return out


def final_answers(
    who: Answerer, prompts: Sequence[Sequence[int]], *, device: torch.device, **limits: Any
) -> list[list[list[int]]]:
    """Generations that are recorded: on a CPU every member alone, as ``final_losses`` explains."""
    if device.type != "cpu":
        return greedy(who, prompts, device=device, **limits)
    return [greedy(who, prompts, device=device, **limits, alone=k)[0] for k in range(who.size)]


def _batch(
    who: Answerer,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    eos_ids: set[int],
    pad_id: int,
    device: torch.device,
) -> list[list[int]]:
    from transformers import DynamicCache

    model = who.model
    first = collate_prompts(prompts, pad_id, device)
    cache = DynamicCache(config=model.config)
    ids, mask, positions = first.input_ids, first.attention_mask, first.position_ids
    stops = torch.tensor(sorted(eos_ids), device=device)
    finished = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    steps: list[torch.Tensor] = []
    for _ in range(max_new_tokens):
        hidden = backbone(model)(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
        ).last_hidden_state
        token = head_logits(model, hidden[:, -1]).argmax(-1)
        finished = finished | torch.isin(token, stops)
        steps.append(torch.where(finished, -1, token))
        if bool(finished.all()):
            break
        ids = torch.where(finished, pad_id, token).unsqueeze(1)
        mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], dim=1)
        positions = positions[:, -1:] + 1
    return [[t for t in answer if t >= 0] for answer in torch.stack(steps, dim=1).tolist()]


def eos_token_ids(model: Any, tokenizer: Any) -> list[int]:
    """All tokens that end an answer: the generation config's and the tokenizer's."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    return sorted({int(i) for i in [*ids, tokenizer.eos_token_id] if i is not None})
