"""Latent attention: the layer is its formula, head by head, and the compressed form gives the unfolded answer."""

import pytest
import torch
from tests.model.variants import VARIANTS
from torch import Tensor, nn

from lifecycle.model import Cache
from lifecycle.model.layers import latent as module
from lifecycle.model.layers.latent import LatentAttention
from lifecycle.model.layers.rope import rotary_angles

NAMES = ["deepseek_v3", "plain_queries", "yarn"]


def layer(name: str) -> LatentAttention:
    made = LatentAttention(VARIANTS[name]).double()
    for parameter in made.parameters():
        nn.init.normal_(parameter, 0.5, 0.5, generator=torch.Generator().manual_seed(parameter.numel()))
    return made


def turned(x: Tensor, angles: tuple[Tensor, Tensor], t: int) -> Tensor:
    cos, sin = (table[0, t, 0] for table in angles)
    half = len(x) // 2
    unsigned = sin[half:].repeat(2)
    return x * cos + torch.cat((-x[half:], x[:half])) * unsigned


def normed(x: Tensor, weight: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean() + 1e-6) * weight


def formula(made: LatentAttention, x_TD: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Position by position and head by head, from the matrices of the paper."""
    s, H, out = made.sizes, made.heads, []
    keys: list[list[Tensor]] = []
    values: list[list[Tensor]] = []
    for t, x in enumerate(x_TD):
        down = made.kv_down.weight @ x
        both = (made.kv_up.weight @ normed(down[: s.kv_rank], made.kv_norm.weight)).view(H, -1)
        shared = turned(down[s.kv_rank :], angles, t)
        keys.append([torch.cat((both[h, : s.nope_dim], shared)) for h in range(H)])
        values.append([both[h, s.nope_dim :] for h in range(H)])
        source = x if s.q_rank is None else normed(made.q_down.weight @ x, made.q_norm.weight)
        q = ((made.q_proj if s.q_rank is None else made.q_up).weight @ source).view(H, -1)
        heads = []
        for h in range(H):
            query = torch.cat((q[h, : s.nope_dim], turned(q[h, s.nope_dim :], angles, t)))
            weights = torch.softmax(torch.stack([query @ keys[u][h] for u in range(t + 1)]) * made.scale, 0)
            heads.append(sum(w * values[u][h] for u, w in enumerate(weights)))
        out.append(made.o_proj.weight @ torch.cat(heads))
    return torch.stack(out)


@pytest.mark.parametrize("name", NAMES)
def test_the_layer_is_the_formula(name: str) -> None:
    made = layer(name)
    x = torch.randn(1, 7, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    angles = rotary_angles(torch.arange(7)[None], VARIANTS[name])
    with torch.no_grad():
        torch.testing.assert_close(made(x, angles, None)[0], formula(made, x[0], angles))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("few", [0, 100])
def test_the_compressed_form_gives_the_unfolded_answer(name: str, few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FEW_QUERIES", few)  # 0: never compressed, 100: always
    made, config = layer(name), VARIANTS[name]
    x = torch.randn(2, 9, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    cache = Cache.empty(config, rows=2, capacity=12, device=torch.device("cpu"), dtype=torch.float64)
    positions = torch.arange(9).expand(2, 9)
    with torch.no_grad():
        wanted = made(x, rotary_angles(positions, config), None)
        for start, stop in ((0, 4), (4, 5), (5, 9)):
            place = cache.place(positions[:, start:stop], None)
            found = made(x[:, start:stop], place.angles, None, place.layer(0))
            torch.testing.assert_close(found, wanted[:, start:stop])
