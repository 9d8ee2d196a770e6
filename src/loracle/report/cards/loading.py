"""How the card's adapter loads: code for plain Transformers and PEFT, as the run's reload check did it, or ``loracle.load``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

from loracle.report.cards.subject import Subject, base_id
from loracle.report.evidence import Record
from loracle.report.inert import plain

BUILT_IN = ("models", "builtin")


def how_to_load(subject: Subject) -> tuple[list[str], str]:
    """(sentences, Python code) for the subject's run, which must be there."""
    assert subject.run is not None
    record = subject.run.record
    how = (record.get("reload") or {}).get("load") or {}
    if not how or how.get("plain") is False:
        why = plain(how.get("reason") or "how it was reloaded is not in its record")
        return [f"Not by Transformers and PEFT alone: {why}. In the study's folder:"], _by_loracle(subject.run.id)
    said = [f"As its reload check loaded it{_passed(record)}:"]
    if how.get("autocast"):
        said.append(
            f"It was trained under autocast: answer within torch.autocast with dtype torch.{plain(how['autocast'])}."
        )
    if how.get("compute_dtype") == "float32":
        said.append("Trained and checked in float32; another compute dtype gives slightly other numbers.")
    return said, "\n".join(_plainly(subject, how))


def _passed(record: Record) -> str:
    check = record["reload"]
    if not check.get("passed") or not isinstance(check.get("difference"), int | float):
        return ""
    return f", which gave the recorded loss to within {check['tolerance']:.0e}"


def _by_loracle(run: str) -> str:
    return f'import loracle\n\nmodel, tokenizer = loracle.load("runs/{run}")'


def _plainly(subject: Subject, how: Mapping[str, Any]) -> Iterator[str]:
    """The lines of a snippet that needs neither loracle nor the record."""
    assert subject.run is not None
    full, bits = subject.method == "full", how.get("quantization_config")
    kind = "AutoModelForSequenceClassification" if subject.classifies else "AutoModelForCausalLM"
    tokens = subject.section("base").get("add_tokens") or ()
    widened = not bits and how.get("dtype") != how.get("compute_dtype")
    yield from _imports(kind, subject, bool(bits), bool(tokens), widened, full)
    revision = f", revision={subject.section('base')['revision']!r}" if base_id(subject.section("base")) else ""
    yield f'adapter = "runs/{subject.run.id}/adapter"  # in the study\'s folder; "." beside this card\'s adapter'
    yield f"tokenizer = AutoTokenizer.from_pretrained(base{revision})"
    if tokens:
        added = ", ".join(f"AddedToken({token!r}, normalized=False, special=False)" for token in tokens)
        yield f"tokenizer.add_tokens([{added}])"
    if bits:
        yield f"bits = BitsAndBytesConfig({', '.join(f'{key}={value!r}' for key, value in bits.items())})"
    source = "adapter" if full else f"base{revision}"
    options = [f"dtype={how.get('dtype')!r}", *(["quantization_config=bits"] if bits else [])]
    if subject.classifies and not full:
        yield "config = AutoConfig.from_pretrained(adapter)  # the labels, and with them the size of the head"
        options.append("config=config")
    yield f"model = {kind}.from_pretrained({source}, {', '.join(options)})"
    if widened:
        yield f"model = model.to(torch.{plain(how.get('compute_dtype'))})"
    if subject.classifies:
        yield (
            "model.config.pad_token_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None "
            "else tokenizer.pad_token_id"
        )
    if tokens and not full:
        yield "if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:"
        yield "    model.resize_token_embeddings(len(tokenizer))"
    cast = "" if how.get("autocast") else ", autocast_adapter_dtype=False"
    yield "model = model.eval()" if full else f"model = PeftModel.from_pretrained(model, adapter{cast}).eval()"


def _imports(kind: str, subject: Subject, bits: bool, tokens: bool, torch: bool, full: bool) -> Iterator[str]:
    base = subject.section("base")
    model, built_in = PurePath(str(base.get("model"))), False
    if base_id(base) is None:
        built_in = model.parts[-3:-1] == BUILT_IN or len(model.parts) == 1
    yield from ["from importlib.resources import files", ""] if built_in else []
    yield from ["import torch"] if torch else []
    yield from [] if full else ["from peft import PeftModel"]
    names = [kind, "AutoTokenizer", *(["BitsAndBytesConfig"] if bits else [])]
    names += ["AutoConfig"] if subject.classifies and not full else []
    names += ["AddedToken"] if tokens else []
    yield f"from transformers import {', '.join(sorted(names))}"
    yield ""
    if built_in:
        yield f'base = str(files("loracle") / "models" / "builtin" / {model.name!r})  # comes with loracle'
    elif base_id(base) is None:
        yield f"base = {'PATH/TO/' + model.name!r}  # a local folder, not on the Hub"
    else:
        yield f"base = {base_id(base)!r}"
