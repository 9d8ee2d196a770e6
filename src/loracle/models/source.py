"""Where a base comes from: a folder, the hub, or this package; its fingerprint; its config and tokenizer.

Weights are safetensors only, code from a model's folder is never run (``auto_map`` is ignored).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loracle.base.errors import ModelError, one_line
from loracle.store.files import digest, file_sha256

BUILTIN = Path(__file__).parent / "builtin"
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.bpe",
    "encoder.json",
)


@dataclass(frozen=True)
class Source:
    """A base that was found. ``resolved`` is what ``from_pretrained`` takes; ``folder`` is null for a hub id not cached."""

    model: str
    resolved: str
    name: str
    revision: str | None
    folder: Path | None

    @property
    def weights(self) -> list[Path]:
        """The safetensors files, sorted by name."""
        return sorted(self.folder.glob("*.safetensors")) if self.folder else []


def find(model: str, revision: str | None = None) -> Source:
    """The base called ``model``: built in, a folder, or on the hub (config fetched to see that it is there)."""
    if "/" not in model and (BUILTIN / model / "config.json").is_file():
        return Source(model, str(BUILTIN / model), model, None, BUILTIN / model)
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(
                f"{model}: no config.json in this folder: base.model needs a folder in Hugging Face format"
            )
        return Source(model, str(path.resolve()), path.resolve().name, None, path.resolve())
    if path.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1:
        raise ModelError(f"base.model: no such folder: {model}")
    return _on_hub(model, revision)


def _on_hub(model: str, revision: str | None) -> Source:
    os.environ.setdefault("HF_HUB_ETAG_TIMEOUT", "5")
    os.environ.setdefault("HF_HUB_DOWNLOAD_TIMEOUT", "10")
    try:
        config = _config_from_hub(model, revision)
    except Exception as error:
        raise ModelError(
            f"base.model: '{model}' is neither a folder, nor a built-in base (gpt2-demo), nor reachable on the hub "
            f"({type(error).__name__}): check the spelling and the network, or give a local folder"
        ) from None
    commit = config.parent.name
    return Source(model, model, model.split("/")[-1], commit, config.parent)


def _config_from_hub(model: str, revision: str | None) -> Path:
    """The cached path of the base's config. One look without retries comes first: hf_hub_download alone tries an
    unreachable hub for 23 s."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    try:
        get_hf_file_metadata(hf_hub_url(model, "config.json", revision=revision), timeout=5)
    except Exception as error:
        try:  # unreachable or offline: what is cached may do
            return Path(hf_hub_download(model, "config.json", revision=revision, local_files_only=True))
        except Exception:
            raise error from None
    return Path(hf_hub_download(model, "config.json", revision=revision))


def fingerprint(source: Source) -> tuple[str | None, str | None]:
    """(SHA-256 over config and weights, None), or (None, why there is none yet)."""
    assert source.folder is not None
    if source.revision is not None:
        return digest({"hub_commit": source.revision}), None
    if not source.weights:
        return None, "no weights in the folder: fingerprint of the config only"
    files = [source.folder / "config.json", *source.weights]
    return digest({path.name: file_sha256(path) for path in files}), None


def tokenizer_fingerprint(source: Source, add: Sequence[str] = ()) -> str:
    """SHA-256 over the tokenizer's files, and the tokens added to it if there are any."""
    assert source.folder is not None
    found = [source.folder / name for name in _TOKENIZER_FILES if (source.folder / name).is_file()]
    files: dict[str, Any] = {path.name: file_sha256(path) for path in found}
    return digest({**files, "add_tokens": list(add)} if add else files)


def require_weights(source: Source) -> None:
    """Refuse a folder whose weights cannot be loaded safely, or that has none."""
    if source.revision is not None or source.weights:
        return
    refuse_pickled(source)
    raise ModelError(f"{source.resolved}: no weights (*.safetensors) in this folder")


def refuse_pickled(source: Source) -> None:
    """Refuse a folder that has weights, none of which can be loaded safely."""
    if source.folder is not None and not source.weights:
        pickled = sorted(
            p.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for p in source.folder.glob(pattern)
        )
        if pickled:
            raise ModelError(
                f"{source.resolved}: only pickled weights ({pickled[0]}), which can run code when loaded: "
                "convert them to safetensors (save_pretrained of a trusted copy does)"
            )


def weight_shapes(source: Source) -> dict[str, tuple[int, ...]]:
    """Tensor name → shape, from the safetensors headers alone; a damaged file is a ``ModelError``."""
    from safetensors import safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    for path in source.weights:
        try:
            with safe_open(path, framework="pt") as handle:
                shapes |= {name: tuple(handle.get_slice(name).get_shape()) for name in handle.keys()}  # noqa: SIM118
        except Exception as error:
            raise ModelError(
                f"{path}: not a whole safetensors file ({one_line(error)}): copy or download it again"
            ) from None
    return shapes


def load_config(source: Source) -> Any:
    """The Transformers config object; its ``auto_map`` is ignored."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(source.resolved, revision=source.revision, trust_remote_code=False)
    except Exception as error:
        raise ModelError(f"{source.resolved}: config.json cannot be read: {one_line(error)}") from None


def load_tokenizer(source: Source, add: Sequence[str] = ()) -> Any:
    """The base's tokenizer, with the tokens ``add`` where it lacks them: each is found whole in any text, and kept in decoded text."""
    from transformers import AddedToken, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source.resolved, revision=source.revision, trust_remote_code=False)
    except Exception as error:
        raise ModelError(f"{source.resolved}: no usable tokenizer: {one_line(error)}") from None
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in add])
    return tokenizer


def licence(source: Source) -> str | None:
    """The licence that the folder's README declares in its metadata, if any."""
    if source.folder is None or not (readme := source.folder / "README.md").is_file():
        return None
    for line in readme.read_text(encoding="utf-8", errors="replace").splitlines()[:60]:
        if line.startswith("license:"):
            return line.partition(":")[2].strip() or None
    return None
