"""A model from its folder or the hub by Transformers, every weight accounted for, in evaluation's class: language model or classifier.

Not covered: precision, freezing (``load.py``).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from loracle.base.errors import ModelError, one_line
from loracle.models.linears import CLASSIFIER_HEADS
from loracle.models.source import Source


def auto_class(classifies: bool) -> Any:
    """Transformers' class of classes: a language model, or a sequence classifier."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    return AutoModelForSequenceClassification if classifies else AutoModelForCausalLM


def set_labels(config: Any, labels: Sequence[str]) -> None:
    """A classifier's labels, in the order of its outputs."""
    config.num_labels = len(labels)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: i for i, label in enumerate(labels)}


def from_pretrained(
    source: Source, config: Any, dtype: torch.dtype, *, classifies: bool = False, device: torch.device | None = None
) -> Any:
    """The model in ``dtype``, with sdpa attention where its architecture has it, else eager; on ``device`` if one is given.

    A weight that the files lack or have in another shape is a ``ModelError``; but a classifier's head, which no language model
    has, starts from a fixed seed.
    """
    place = {} if device is None else {"device_map": {"": device}}
    config._attn_implementation = (
        None  # whatever config.json asks for: Transformers takes sdpa, or eager where there is none
    )
    try:
        with _quiet(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model, info = auto_class(classifies).from_pretrained(
                source.resolved,
                revision=source.revision,
                config=config,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=classifies,  # the head of another classifier; anything else is refused below
                **place,
            )
    except Exception as error:
        raise ModelError(f"{source.resolved}: cannot be loaded: {one_line(error)}") from None
    _refuse_absent(source, info, CLASSIFIER_HEADS if classifies else ())
    return model


def _refuse_absent(source: Source, info: dict[str, Any], heads: tuple[str, ...]) -> None:
    """Transformers would fill what is missing at random and go on."""
    mismatched = (key if isinstance(key, str) else key[0] for key in info.get("mismatched_keys", ()))
    absent = sorted({*info.get("missing_keys", ()), *mismatched})
    absent = [key for key in absent if key.partition(".")[0] not in heads]
    if absent:
        more = f" and {len(absent) - 1} more" if absent[1:] else ""
        raise ModelError(f"{source.resolved}: the weights lack {absent[0]}{more}")


def resize_vocabulary(model: Any, size: int) -> None:
    """Room for ``size`` tokens in the embeddings and the head. New rows are drawn around the mean of the others (Hewitt 2021, as
    Transformers does), from a fixed seed. Never smaller."""
    if size <= model.get_input_embeddings().weight.shape[0]:
        return
    with _quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model.resize_token_embeddings(size)


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bar and no report of missing and unused weights: the first is refused, the second without effect."""
    from transformers.utils import logging as hf_logging

    hf_logging.disable_progress_bar()
    os.environ.setdefault("DISABLE_KERNEL_MAPPING", "1")
    before = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()
    try:
        yield
    finally:
        hf_logging.set_verbosity(before)
