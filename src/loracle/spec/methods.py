"""What can be trained, by name: LoRA in cohorts, full fine-tuning, and PEFT's methods, each alone in the same loop.

A name is PEFT's own (``PeftType``) in lower case, or that of a kind of LoRA (dora, pissa, olora, loftq). What a method takes
beside rank, alpha, dropout and targets stands under ``adapter.options`` in PEFT's words. PEFT has no bottleneck adapters
(Houlsby et al. 2019), so there are none here.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """``peft``: PEFT's type (null: full fine-tuning); ``rank``, ``targets``: whether it has them; ``source``: its paper."""

    peft: str | None
    rank: bool
    targets: bool
    source: str


METHODS: dict[str, Method] = {
    "lora": Method("LORA", True, True, "Hu et al. 2021"),
    "full": Method(None, False, False, "every weight of the base is trained"),
    "dora": Method("LORA", True, True, "Liu et al. 2024: magnitude and direction apart"),
    "pissa": Method("LORA", True, True, "Meng et al. 2024: starts from the principal singular vectors"),
    "olora": Method("LORA", True, True, "Büyükakyüz 2024: starts from a QR decomposition"),
    "loftq": Method("LORA", True, True, "Li et al. 2023: starts from the quantization error"),
    "adalora": Method("ADALORA", True, True, "Zhang et al. 2023: moves rank to where it is needed"),
    "ia3": Method("IA3", False, True, "Liu et al. 2022: scales activations"),
    "ln_tuning": Method("LN_TUNING", False, False, "Zhao et al. 2023: layer norms only"),
    "prefix_tuning": Method("PREFIX_TUNING", False, False, "Li & Liang 2021: keys and values of virtual tokens"),
    "prompt_tuning": Method("PROMPT_TUNING", False, False, "Lester et al. 2021: embeddings of virtual tokens"),
    "p_tuning": Method("P_TUNING", False, False, "Liu et al. 2021: virtual tokens from a small encoder"),
    "vera": Method("VERA", True, True, "Kopiczko et al. 2023: shared random matrices, trained scales"),
    "loha": Method("LOHA", True, True, "Hyeon-Woo et al. 2021: Hadamard products"),
    "lokr": Method("LOKR", True, True, "Yeh et al. 2023: Kronecker products"),
    "oft": Method("OFT", True, True, "Qiu et al. 2023: orthogonal rotations"),
    "boft": Method("BOFT", False, True, "Liu et al. 2023: butterfly rotations"),
    "hra": Method("HRA", True, True, "Yuan et al. 2024: Householder reflections"),
    "fourierft": Method("FOURIERFT", False, True, "Gao et al. 2024: spectral coefficients"),
    "randlora": Method("RANDLORA", True, True, "Albert et al. 2025: full rank from random bases"),
    "miss": Method("MISS", True, True, "Kang & Yin 2024: shards of a matrix"),
    "shira": Method("SHIRA", True, True, "Bhardwaj et al. 2024: a sparse share of the weights"),
}
"""Method name → what it is."""

VIRTUAL = ("prefix_tuning", "prompt_tuning", "p_tuning")  # their tokens stand before the row's own
