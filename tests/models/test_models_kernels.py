"""Each Triton kernel against the torch operations that it stands for: on a GPU, or under Triton's interpreter
(TRITON_INTERPRET=1 with triton installed)."""

from __future__ import annotations

import os

import pytest
import torch
from torch import nn

from loracle.models.kernels import installed

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
DTYPE = torch.bfloat16 if CUDA else torch.float32
pytestmark = [
    pytest.mark.skipif(not installed(), reason="Triton is not installed"),
    pytest.mark.skipif(
        not CUDA and os.environ.get("TRITON_INTERPRET") != "1", reason="no GPU, and TRITON_INTERPRET=1 is not set"
    ),
]


def near(found: torch.Tensor, wanted: torch.Tensor, relative: float | None = None) -> None:
    """‖found − wanted‖ / ‖wanted‖ within the rounding of the dtype."""
    limit = relative or (6e-3 if found.dtype == torch.bfloat16 else 2e-6)
    assert found.isfinite().all()
    found, wanted = found.detach().float(), wanted.detach().float()
    assert float((found - wanted).norm() / wanted.norm()) < limit


def noise(*shape: int, grad: bool = False) -> torch.Tensor:
    return (
        torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(DEVICE, DTYPE).requires_grad_(grad)
    )


@pytest.mark.parametrize("width", [64, 200])
@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("added", [True, False])
def test_add_norm(width: int, centred: bool, added: bool) -> None:
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    from loracle.models.blocks import add_norm

    norm = (nn.LayerNorm(width) if centred else LlamaRMSNorm(width, eps=1e-5)).to(DEVICE, DTYPE).requires_grad_(False)
    norm.weight.copy_(noise(width))
    x, delta = noise(3, 5, width, grad=True), noise(5, 3, width).view(3, 5, width).requires_grad_()
    twins = [part.detach().clone().requires_grad_() for part in (x, delta)]
    stream, out = add_norm(x, delta if added else None, norm)
    wanted_stream = twins[0] + twins[1] if added else twins[0]
    wanted = norm(wanted_stream)
    near(stream, wanted_stream)
    near(out, wanted)
    dy = noise(3, 5, width) + 1
    (out * dy + stream * 0.5).sum().backward()
    (wanted * dy + wanted_stream * 0.5).sum().backward()
    near(x.grad, twins[0].grad)
    if added:
        near(delta.grad, twins[1].grad)


@pytest.mark.parametrize("angles", [1, 3])
def test_rotary(angles: int) -> None:
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    from loracle.models.frozen import Rotary

    wide, theta = noise(3, 10, 96 + 32).detach().requires_grad_(), noise(angles, 10, 16).float()
    cos, sin = (torch.cat([part, part], -1).to(DTYPE) for part in (theta.cos(), theta.sin()))
    x = wide[..., 32:].view(3, 10, 3, 32)  # queries that are a slice of something wider
    found = Rotary.apply(x, cos, sin)
    wanted = apply_rotary_pos_emb(x.transpose(1, 2), x.transpose(1, 2), cos, sin)[0].transpose(1, 2)
    near(found, wanted)
    dy = noise(3, 10, 3, 32)
    near(torch.autograd.grad(found, wide, dy)[0], torch.autograd.grad(wanted, wide, dy)[0])


def test_gated_product() -> None:
    from loracle.models.frozen import GatedProduct

    parts = [noise(7, 300, grad=True), noise(300, 7).T.contiguous().detach().requires_grad_()]
    twins = [part.detach().clone().requires_grad_() for part in parts]
    found, wanted = GatedProduct.apply(*parts), nn.functional.silu(twins[0]) * twins[1]
    near(found, wanted)
    dy = noise(7, 300)
    found.backward(dy.clone())  # its memory is used again
    wanted.backward(dy)
    for part, twin in zip(parts, twins, strict=True):
        near(part.grad, twin.grad)


@pytest.mark.parametrize(("kind", "double"), [("nf4", True), ("nf4", False), ("fp4", True)])
def test_four_bit_weights_are_bitsandbytes_own_bit_for_bit(kind: str, double: bool) -> None:
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    from loracle.models.kernels.four_bit import dequantize

    weight = noise(96, 320)
    packed, state = quantize_4bit(weight, blocksize=64, compress_statistics=double, quant_type=kind)
    assert torch.equal(dequantize(packed, state, DTYPE), dequantize_4bit(packed, state))


@pytest.mark.parametrize("vocabulary", [100, 5000])
def test_chunked_losses(vocabulary: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from loracle.adapters import forward

    monkeypatch.setattr(forward, "CHUNK_BYTES", 2 * 64 * (-(-vocabulary // 64) * 64))
    width, count = 48, 150
    weight = nn.functional.pad(noise(vocabulary, width), (0, 0, 0, -vocabulary % 64))
    hidden, twin = noise(400, width, grad=True), noise(400, width, grad=True)
    generator = torch.Generator().manual_seed(0)
    positions = torch.randperm(400, generator=generator)[:count].to(DEVICE)
    targets = torch.randint(vocabulary, (count,), generator=generator).to(DEVICE)
    valid = (torch.arange(count) < 140).float().to(DEVICE)
    positions[140:] = positions[0]  # as padding points at some position that is scored
    found = forward.ChunkedLosses.apply(hidden, weight, vocabulary, positions, targets, valid)
    logits = (twin[positions] @ weight[:vocabulary].T).float()
    wanted = nn.functional.cross_entropy(logits, targets, reduction="none")
    near(found, wanted, 1e-5)
    scale = torch.linspace(0.1, 2, count, device=DEVICE) * valid
    (found * scale).sum().backward()
    (wanted * scale).sum().backward()
    near(hidden.grad, twin.grad, 1e-2 if CUDA else 1e-5)


def test_dropout_is_the_same_mask() -> None:
    from loracle.adapters.dropout import Drop, keep_mask, step_keys, threshold, token_codes

    x = noise(3, 10, 300, grad=True)
    seeds = torch.tensor([1, 2, 3], dtype=torch.int32, device=DEVICE)
    rate = torch.tensor([0.0, 0.1, 0.5], device=DEVICE)
    keys = step_keys(seeds, torch.tensor(4, dtype=torch.int32, device=DEVICE), 12345)
    codes = token_codes(2, 5, 1, DEVICE)
    found = Drop.apply(x, keys, codes, threshold(rate), 1 / (1 - rate))
    mask = keep_mask(keys, rate, codes, 300)
    near(found, x * mask)
    assert torch.equal(found == 0, (x * mask) == 0)
    each = codes.expand(3, 10).contiguous()
    assert torch.equal(Drop.apply(x, keys, each, threshold(rate), 1 / (1 - rate)), found)
    found.backward(torch.ones_like(found))
    near(x.grad, mask)


def test_adamw_in_one_kernel() -> None:
    from loracle.adapters.flat import FlatParameters
    from loracle.spec.study import Train
    from loracle.train.optimizer import CohortAdamW
    from loracle.train.scaling import LossScale

    trains = [
        Train(learning_rate=1e-2, weight_decay=0.1),
        Train(learning_rate=1e-3, max_grad_norm=None, beta1=0.8),
        Train(),
    ]
    pair = []
    for kernel in (True, False):
        flat = FlatParameters(3, [((4, 700), (500, 4))], torch.float32, DEVICE)
        flat.data.copy_(torch.randn(flat.data.shape, generator=torch.Generator().manual_seed(1)))
        optimizer = CohortAdamW(flat, trains, 5)
        optimizer.use_loraplus([1.0, 16.0, 1.0])
        optimizer.kernel = kernel
        for step in range(5):
            flat.grad.copy_(torch.randn(flat.data.shape, generator=torch.Generator().manual_seed(10 + step)))
            optimizer.begin(step)
            losses = torch.zeros(3, dtype=torch.float64, device=DEVICE)
            losses[2] = float("nan") if step == 2 else 0.0
            optimizer.step(losses, LossScale(3, DEVICE, False))
        pair.append((flat.data, optimizer.exp_avg, optimizer.exp_avg_sq))
    for found, wanted in zip(*pair, strict=True):
        near(found, wanted, 2e-6)
