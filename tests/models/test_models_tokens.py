"""Tokens added to a base: whole in text, with rows of their own in embeddings and head."""

from __future__ import annotations

import pytest
import torch

from loracle.base.errors import ModelError
from loracle.models.load import LoadedBase, load_base
from loracle.models.source import find, load_tokenizer, tokenizer_fingerprint
from loracle.spec.study import Base, Cell, Task

ADDED = ("<fact>", "<question>")


def with_tokens(precision: str = "fp32", vocab: int | None = -1) -> LoadedBase:
    cell = Cell(base=Base(add_tokens=ADDED), task=Task(data="x"), precision=precision)
    size = len(load_tokenizer(find("gpt2-demo"), ADDED)) if vocab == -1 else vocab
    return load_base(find("gpt2-demo"), cell, torch.device("cpu"), vocab=size)


def test_the_tokenizer_finds_them_whole_and_keeps_them() -> None:
    plain, more = load_tokenizer(find("gpt2-demo")), load_tokenizer(find("gpt2-demo"), ADDED)
    text = "the<fact>Sky is blue <question>"
    ids = more(text)["input_ids"]
    assert len(more) == len(plain) + 2
    assert {len(plain), len(plain) + 1} <= set(ids)
    assert more.decode(ids, skip_special_tokens=True).count("<fact>") == 1  # an answer may hold them
    assert more("plain text")["input_ids"] == plain("plain text")["input_ids"]
    assert len(load_tokenizer(find("gpt2-demo"), ["the"])) == len(plain)  # it has that one


def test_the_fingerprint_knows_them() -> None:
    source = find("gpt2-demo")
    found = {tokenizer_fingerprint(source, add) for add in ((), ADDED, ADDED[:1], ADDED[::-1])}
    assert len(found) == 4
    assert tokenizer_fingerprint(source, ()) == tokenizer_fingerprint(source)


@pytest.mark.parametrize("precision", ["fp32", "nf4"])
def test_embeddings_grow_and_the_rest_stays(precision: str) -> None:
    cell = Cell(task=Task(data="x"), precision=precision)
    plain = load_base(find("gpt2-demo"), cell, torch.device("cpu"))
    torch.manual_seed(3)
    grown, drawn = with_tokens(precision), torch.rand(2)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(2))
    rows = plain.model.transformer.wte.weight.shape[0]
    embeddings = grown.model.transformer.wte.weight
    assert embeddings.shape[0] == rows + 2 == grown.model.config.vocab_size
    assert grown.model.lm_head.weight is embeddings  # still tied
    assert not embeddings.requires_grad
    assert torch.equal(embeddings[:rows], plain.model.transformer.wte.weight)
    assert torch.equal(embeddings, with_tokens(precision).model.transformer.wte.weight)
    assert grown.base_params == plain.base_params  # of the base as published
    assert grown.census == plain.census


def test_a_vocabulary_with_room_is_left_alone() -> None:
    assert with_tokens(vocab=100).model.transformer.wte.weight.shape[0] == 8192


def test_the_length_is_needed() -> None:
    with pytest.raises(ModelError, match="needs the length of the tokenizer"):
        with_tokens(vocab=None)
