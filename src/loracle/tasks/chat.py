"""Conversations to segments: the tokenizer's chat template where it has one, else plain ``User: … Assistant: …``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from loracle.base.errors import DataError, SpecError
from loracle.tasks.formats import Drop
from loracle.tasks.rows import Segment

Messages = Sequence[dict[str, str]]


def uses_template(tokenizer: Any, choice: str) -> bool:
    """Whether conversations go through the tokenizer's own template (``task.chat_template``)."""
    has = bool(getattr(tokenizer, "chat_template", None))
    if choice == "tokenizer" and not has:
        raise SpecError("the base's tokenizer has no chat template: use auto or plain", "task.chat_template")
    return has and choice != "plain"


def plain_segments(messages: Messages) -> list[Segment]:
    """``User: …\\nAssistant:`` and `` …`` with an eos after every answer (the fourth document's template)."""
    out: list[Segment] = []
    before = ""
    for message in messages:
        text = message["content"].strip()
        if message["role"] == "assistant":
            out += [Segment(f"{before}Assistant:", False), Segment(f" {text}", True, True)]
            before = "\n"
        else:
            before += f"{message['role'].capitalize()}: {text}\n"
    return out


def template_segments(tokenizer: Any, messages: Messages) -> list[Segment]:
    """The whole conversation as the tokenizer renders it, cut at each assistant turn.

    A turn begins where the conversation before it, rendered with a generation prompt, ends, and goes to the special
    token that ends it (the last turn to an eos, where the template has no such token). So what generation sees is a
    true prefix. Templates that rewrite earlier turns once later ones are there are followed as far as they can be;
    what cannot be located is an error that names the way out.
    """
    full = _render(tokenizer, messages, generation_prompt=False)
    ends = sorted(_special_tokens(tokenizer), key=len, reverse=True)
    out: list[Segment] = []
    done = 0
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        start = len(_common(full, _render(tokenizer, messages[:i], generation_prompt=True)))
        content = message["content"].strip()
        found = full.find(content, max(start, done))
        asked = messages[i - 1]["content"].strip() if i else ""
        if start < done or found < 0 or asked not in full[done:start]:
            raise DataError(
                "the tokenizer's chat template cannot be cut at its assistant turns: set task.chat_template: plain"
            )
        stop = found + len(content)
        tail = full[stop:]
        end = next((token for token in ends if tail.lstrip().startswith(token)), "")
        stop += len(tail) - len(tail.lstrip()) + len(end) if end else 0
        out += [
            Segment(full[done:start], False),
            Segment(full[start:stop], True, end=not end and i == len(messages) - 1),
        ]
        done = stop
    return out


def _common(full: str, prefix: str) -> str:
    """``prefix``, or what of it ``full`` begins with: some templates open a thought in the generation prompt only."""
    if full.startswith(prefix):
        return prefix
    size = next((i for i, (a, b) in enumerate(zip(full, prefix, strict=False)) if a != b), min(len(full), len(prefix)))
    return full[:size]


def _render(tokenizer: Any, messages: Messages, generation_prompt: bool) -> str:
    try:
        text = tokenizer.apply_chat_template(
            [dict(m) for m in messages], tokenize=False, add_generation_prompt=generation_prompt
        )
    except Exception as error:  # the template's own raise_exception, or its mistake
        raise Drop(f"the chat template refuses the conversation ({' '.join(str(error).split())[:80]})") from None
    return str(text)


def _special_tokens(tokenizer: Any) -> set[str]:
    added = getattr(tokenizer, "added_tokens_decoder", {})
    tokens = {str(token) for token in added.values() if getattr(token, "special", True)}
    return {token for token in tokens | set(tokenizer.all_special_tokens) if token}
