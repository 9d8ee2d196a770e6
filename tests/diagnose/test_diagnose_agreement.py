"""Agreement of two runs' answers: equal tokens, and likeness of their embeddings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from loracle.base.errors import ModelError
from loracle.diagnose.pairs import diagnose
from loracle.evaluate.embedding import base_encoder, cosines, embeddings, sentence_encoder
from loracle.models.load import load_base
from loracle.models.source import find, load_tokenizer
from loracle.spec.study import Cell, Task
from loracle.store.layout import StudyFolder

CPU = torch.device("cpu")
TEXTS = ["The card has not arrived.", "My card is late.", "", "Exchange rates for euros"]


@pytest.fixture(scope="module")
def base() -> Any:
    cell = Cell(task=Task(data="x"), precision="fp32")
    source = find("gpt2-demo")
    return load_base(source, cell, CPU).model.eval(), load_tokenizer(source)


def test_embeddings_are_mean_last_hidden_states_whatever_the_batch(base: Any) -> None:
    model, tokenizer = base
    found = embeddings(base_encoder(model, tokenizer, CPU), TEXTS)
    for text, vector in zip(TEXTS, found, strict=True):
        if not text:
            assert not vector.any()
            continue
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        mean = model.transformer(input_ids=ids).last_hidden_state[0].mean(0).detach().double().numpy()
        assert np.allclose(vector, mean / np.linalg.norm(mean), atol=1e-5)
    same = cosines(base_encoder(model, tokenizer, CPU), [TEXTS, TEXTS[::-1]], TEXTS)
    assert np.allclose(same[0], [1, 1, 0, 1])
    assert (abs(same[1]) <= 1).all()


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny bidirectional encoder with random weights and the built-in base's tokenizer."""
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("encoder") / "tiny-encoder"
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, vocab_size=8192
    )
    BertModel(config).save_pretrained(folder)
    load_tokenizer(find("gpt2-demo")).save_pretrained(folder)
    return folder


def test_a_sentence_encoder_minds_its_padding(bert: Path) -> None:
    encoder = sentence_encoder(str(bert), CPU)
    together, alone = embeddings(encoder, TEXTS), [embeddings(encoder, [text])[0] for text in TEXTS]
    assert all(np.allclose(a, b, atol=1e-5) for a, b in zip(together, alone, strict=True) if b.any())
    assert encoder.name == "tiny-encoder"
    with pytest.raises(ModelError, match="sentence_encoder"):
        sentence_encoder(str(bert.parent / "absent"), CPU)


def test_the_diagnose_job_writes_both(tmp_path: Path, bert: Path) -> None:
    folder = StudyFolder(tmp_path)
    config = Cell(task=Task(data="x"), precision="fp32").model_dump(mode="json")
    for name, answers in (("one", ["a late card", "euros"]), ("two", ["a late card", "dollars and euros"])):
        folder.run(name).mkdir(parents=True)
        ids = [[ord(letter) for letter in text] for text in answers]
        pd.DataFrame({"item": [3, 5, 7], "prediction": [*answers, None], "prediction_ids": [*ids, None]}).to_parquet(
            folder.run(name) / "predictions.parquet"
        )
        folder.run_record(name).write_text(json.dumps({"config": config}))
    pair = {"run": "one", "twin": "two"}
    for named, shown in ((None, "base"), (str(bert), "tiny-encoder")):
        job = {"agreement": [pair], "sentence_encoder": named, "device": "cpu"}
        assert diagnose(folder, job)["agreement"] == 1
        [found] = json.loads(folder.agreement.read_text())["pairs"]
        assert found["encoder"] == shown
        assert (found["items"], found["exact"]) == (2, 0.5)
        assert 0 < found["embedding_cosine"] < 1
