"""A local model as judge, by likelihood: nothing is generated, so every verdict can be read. Needs torch: workers only.

A pair is shown in both orders; the preference is 1 + the mean probability of the letter of the model's answer, among the
two letters. A rating is the expected value over the digits 1 to 5. Small models prefer a position or a letter whatever
the answers say; both orders take that out of the mean, not out of the judgement's quality.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from loracle.base.errors import ModelError, one_line
from loracle.evaluate.judging import prompts
from loracle.evaluate.judging.asking import draw
from loracle.evaluate.judging.items import (
    ASPECTS,
    BOTH,
    MODEL_FIRST,
    REFERENCE_FIRST,
    Item,
    Message,
    Verdict,
    key,
    line,
)
from loracle.evaluate.judging.session import JUDGEMENTS
from loracle.evaluate.judging.store import Judgements
from loracle.models.load import pick_compute_dtype, pick_device
from loracle.models.precision import TORCH_DTYPES
from loracle.models.source import Source, find, fingerprint, load_tokenizer, require_weights
from loracle.store.layout import StudyFolder

LETTERS, DIGITS = ("A", "B"), ("1", "2", "3", "4", "5")


class _Unreadable(Exception):
    """Why this item has no verdict."""


def judge_job(
    folder: StudyFolder, job: dict[str, Any], say: Callable[..., None], stop: Callable[[], bool]
) -> dict[str, Any]:
    """Judge the job's items that have no verdict yet into ``judgements.jsonl``; the record (docs/jobs.md)."""
    say("load")
    judge = LocalJudge.load(job["model"], job["device"])
    items = [Item(**item) for item in job["items"]]
    with Judgements(folder.root / JUDGEMENTS) as store:
        for step, item in enumerate(items):
            if stop():
                return {"status": "interrupted", "reason": f"stopped after {step} of {len(items)} items"}
            if key(item, judge.identity) not in store.lines:
                store.append(line(item, judge.identity, judge(item)))
            say("judge", step=step + 1, steps=len(items))
    return {"status": "done", "reason": None, "judge": judge.identity}


@dataclass(frozen=True)
class LocalJudge:
    """A causal language model in evaluation mode. ``identity`` holds its name and fingerprint, never its path."""

    model: Any
    tokenizer: Any
    identity: dict[str, Any]

    @classmethod
    def load(cls, model: str, device: str = "auto") -> LocalJudge:
        """From a folder or a hub id; float32 on a CPU, 16-bit on a GPU. Raises ``ModelError``."""
        source, where = _found(model), pick_device(device)
        dtype = pick_compute_dtype("auto", "bf16", where)
        tokenizer = load_tokenizer(source)
        identity = {
            "kind": "local",
            "model": source.name,
            "fingerprint": fingerprint(source)[0],
            "dtype": dtype,
            "template": bool(tokenizer.chat_template),
            "prompt": prompts.VERSION,
        }
        return cls(_loaded(source, where, TORCH_DTYPES[dtype]), tokenizer, identity)

    def __call__(self, item: Item) -> Verdict:
        """The item's verdict; null with a reason where the prompt is too long or the model's figures are not finite."""
        if item.reference is not None and item.reference == item.answer:
            return draw()
        try:
            return self._rated(item) if item.reference is None else self._compared(item)
        except _Unreadable as error:
            return Verdict(None, reason=str(error))

    def _compared(self, item: Item) -> Verdict:
        asked = {
            order: self._prompt(prompts.compare(item, order == MODEL_FIRST)) for order in (REFERENCE_FIRST, MODEL_FIRST)
        }
        found = {order: self._log_probs(prompt, LETTERS) for order, prompt in asked.items()}
        wins = (_shares(found[REFERENCE_FIRST])["B"], _shares(found[MODEL_FIRST])["A"])
        return Verdict(asked, BOTH, found, preference=1 + sum(wins) / 2)

    def _rated(self, item: Item) -> Verdict:
        asked = {aspect: self._prompt(prompts.rate(item, (aspect,))) for aspect in ASPECTS}
        found = {aspect: self._log_probs(prompt, DIGITS) for aspect, prompt in asked.items()}
        ratings = {aspect: sum(int(d) * p for d, p in _shares(one).items()) for aspect, one in found.items()}
        return Verdict(asked, reply=found, ratings=ratings)

    def _prompt(self, messages: Sequence[Message]) -> str:
        """One user turn of the model's chat template, or plain text that ends where the answer begins."""
        text = "\n\n".join(message["content"] for message in messages)
        if not self.identity["template"]:
            return f"{text}\n\nAnswer:"
        turn = [{"role": "user", "content": text}]
        return str(self.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))

    def _log_probs(self, prompt: str, options: Sequence[str]) -> dict[str, float]:
        """Option → log-probability of its tokens after the prompt, in nats; options of one token take one pass in all."""
        template = self.identity["template"]
        start = tuple(self.tokenizer(prompt, add_special_tokens=not template)["input_ids"])
        after = functools.cache(lambda tokens: self._next(start + tokens))
        found = {}
        for option in options:
            text = option if template else f" {option}"
            tokens = tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])
            found[option] = sum(float(after(tokens[:i])[token]) for i, token in enumerate(tokens))
        if not all(math.isfinite(value) for value in found.values()):
            raise _Unreadable("the model's log-probabilities are not finite")
        return found

    @torch.inference_mode()
    def _next(self, tokens: tuple[int, ...]) -> torch.Tensor:
        """Log-probabilities of the token after ``tokens``, ``[vocabulary]``, in float32."""
        longest = getattr(self.model.config, "max_position_embeddings", None)
        if longest is not None and len(tokens) > longest:
            raise _Unreadable(f"the prompt has {len(tokens):,} tokens, the model takes {longest:,}")
        ids = torch.tensor([tokens], device=self.model.device)
        logits = self.model(input_ids=ids, use_cache=False).logits
        return torch.log_softmax(logits[0, -1].float(), dim=-1).cpu()


def _shares(log_probs: dict[str, float]) -> dict[str, float]:
    """Probabilities among the options alone."""
    top = max(log_probs.values())
    weights = {option: math.exp(value - top) for option, value in log_probs.items()}
    return {option: weight / sum(weights.values()) for option, weight in weights.items()}


def _found(model: str) -> Source:
    try:
        return find(model)
    except ModelError as error:
        raise ModelError(str(error).replace("base.model", "--judge-model")) from None


def _loaded(source: Source, device: torch.device, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    require_weights(source)
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            source.resolved,
            revision=source.revision,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            device_map={"": device.index or 0} if device.type == "cuda" else None,
        )
    except Exception as error:
        raise ModelError(f"{source.resolved}: cannot be loaded: {one_line(error)}") from None
    if absent := sorted(map(str, info.get("missing_keys", ()))):  # Transformers fills them at random
        raise ModelError(f"{source.resolved}: the weights lack {absent[0]}: not a judge")
    return model.eval()
