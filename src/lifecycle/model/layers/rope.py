"""Rotary positions (RoFormer, arXiv 2104.09864, eq. 15), and the four ways to stretch them.

Pair i of a head's d rotated dimensions turns by position * f_i, f_i = theta^(-2i/d), and with a scaling of factor s:

    linear    f_i / s                                                        (arXiv 2306.15595)
    ntk       theta becomes theta * s^(d / (d - 2)): the fastest pair keeps its speed, the slowest is divided by s
    yarn      f_i / s where a pair turns less than beta_slow times in the original length, f_i where more than
              beta_fast, linear in i between; cos and sin times 0.1 ln(s) + 1  (arXiv 2309.00071, sections 3.2, 3.4)
    llama3    f_i / s for wavelengths over original / low_freq_factor, f_i under original / high_freq_factor,
              blended between by how often the wavelength fits                 (Llama 3.1, arXiv 2407.21783)

The d/2 angles stand twice side by side ("rotate half"), as in the Hugging Face models, so that weights map one to one.

Shapes: B sequences, T positions, H heads, K width of a head, P rotated part of it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lifecycle.model.config import ModelConfig
from lifecycle.model.layers.cpu import block_parts
from lifecycle.model.parts import RopeScaling


def rotary_table(position_ids: Tensor, config: ModelConfig) -> tuple[Tensor, Tensor]:
    """cos and signed sin (-sin, then sin) of every position's angles, each (..., P) in fp32 for ids of shape (...)."""
    inverse_P2 = rotary_frequencies(config, position_ids.device)
    cos, sin = _table(position_ids, inverse_P2, attention_factor(config.rope_scaling))
    return cos, sin


# an operator of its own: a compiler would compute cosines again in every layer rather than read them
@torch.library.custom_op("lifecycle::rotary_table", mutates_args=())
def _table(position_ids: Tensor, inverse_P2: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    angles = position_ids[..., None].float() * inverse_P2
    cos, sin = angles.cos(), angles.sin()
    both = torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)
    return both if factor == 1 else (both[0] * factor, both[1] * factor)


@_table.register_fake
def _(position_ids: Tensor, inverse_P2: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    shape = (*position_ids.shape, 2 * inverse_P2.shape[0])
    return inverse_P2.new_empty(shape), inverse_P2.new_empty(shape)


def rotary_angles(position_ids_BT: Tensor, config: ModelConfig) -> tuple[Tensor, Tensor]:
    """cos and signed sin, each (B, T, 1, P) in fp32: to turn queries and keys of every head.

    They are derived from the ids, once a forward pass: no table to size, to move, or to fill after a start on the
    meta device.
    """
    cos, sin = rotary_table(position_ids_BT, config)
    return cos[:, :, None, :], sin[:, :, None, :]


def rotate(x_BTHK: Tensor, cos_BT1P: Tensor, sin_BT1P: Tensor) -> Tensor:
    """Turn each pair (x_i, x_{i + P/2}) of the first P dimensions by its angle; products in fp32, result as x.

    The sin is signed: -sin for the first of a pair, sin for the second.
    """
    if block_parts.takes_turn(x_BTHK, cos_BT1P, sin_BT1P):
        out: Tensor = _Turned.apply(x_BTHK, cos_BT1P, sin_BT1P)
        return out
    P = cos_BT1P.shape[-1]
    if x_BTHK.shape[-1] > P:
        turned = rotate(x_BTHK[..., :P], cos_BT1P, sin_BT1P)
        return torch.cat((turned, x_BTHK[..., P:]), dim=-1)
    other = x_BTHK.roll(P // 2, dims=-1)  # of the same pair
    return (x_BTHK * cos_BT1P + other * sin_BT1P).to(x_BTHK.dtype)


class _Turned(torch.autograd.Function):
    """A turn by our C; its gradient turns back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return block_parts.turned(x, cos, sin, False)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return block_parts.turned(grad, cos, sin, True), None, None


def rotary_frequencies(config: ModelConfig, device: torch.device) -> Tensor:
    """(P/2,) fp32: radians a position, of every pair, stretched as the config says."""
    P, scaling, theta = config.rotary_dim, config.rope_scaling, config.stretched_theta
    exponents = torch.arange(0, P, 2, device=device, dtype=torch.float32) / P
    frequencies = 1.0 / theta**exponents
    if scaling is None or scaling.kind == "ntk":
        return frequencies
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    return _yarn(frequencies, scaling, theta) if scaling.kind == "yarn" else _llama3(frequencies, scaling)


def attention_factor(scaling: RopeScaling | None) -> float:
    """What cos and sin are multiplied with: 1 but for yarn."""
    if scaling is None or scaling.kind != "yarn":
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        return _mscale(scaling.factor, scaling.mscale) / _mscale(scaling.factor, scaling.mscale_all_dim)
    return _mscale(scaling.factor, 1.0)


def softmax_scale(config: ModelConfig) -> float:
    """What scores are multiplied with before the softmax: K^(-1/2), times mscale^2 in a stretched latent attention."""
    scaling, scale = config.rope_scaling, config.head_dim**-0.5
    if config.latent is not None and scaling is not None and scaling.mscale_all_dim:
        scale *= _mscale(scaling.factor, scaling.mscale_all_dim) ** 2
    return scale


def _mscale(factor: float, weight: float) -> float:
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def _yarn(frequencies_P2: Tensor, scaling: RopeScaling, theta: float) -> Tensor:
    assert scaling.original_positions is not None
    pairs = len(frequencies_P2)

    def pair_that_turns(times: float) -> float:
        """The (fractional) pair that turns so often within the original length."""
        length = scaling.original_positions or 0
        return 2 * pairs * math.log(length / (times * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(pair_that_turns(scaling.beta_fast)), 0)
    high = min(math.ceil(pair_that_turns(scaling.beta_slow)), 2 * pairs - 1)
    width = high - low if high != low else 0.001
    index = torch.arange(pairs, device=frequencies_P2.device, dtype=torch.float32)
    divided = ((index - low) / width).clamp(0, 1)
    return frequencies_P2 / scaling.factor * divided + frequencies_P2 * (1 - divided)


def _llama3(frequencies_P2: Tensor, scaling: RopeScaling) -> Tensor:
    assert scaling.original_positions is not None
    fits = scaling.original_positions * frequencies_P2 / (2 * math.pi)  # wavelengths in the original length
    kept = (fits - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = kept.clamp(0, 1)
    return (1 - kept) * frequencies_P2 / scaling.factor + kept * frequencies_P2
