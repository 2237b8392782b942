"""A module with the part of vLLM's interface that is used; log-probabilities as its sampler computes them.

From vllm/v1/sample/sampler.py: bias, repetition penalty; at temperature 0 the log-softmax of that; else temperature,
min-p, then top-k and top-p within it, and the log-softmax of what is left.
"""

from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from lifecycle.model import Decoder
from lifecycle.rollout import Sampling, generate


def stand_in(model: Decoder, *, shift: float = 0.0, ended: str | None = None) -> ModuleType:
    """Draws with our engine. shift: added to every log-probability; ended: the reason of every end, as it is said;
    `told`: calls of workers, `settings`: those of the last engine."""
    module = ModuleType("vllm")

    class LLM:
        def __init__(self, **settings: Any) -> None:
            assert settings["logprobs_mode"] == "processed_logprobs"
            module.settings = settings  # type: ignore[attr-defined]

        def collective_rpc(self, method: str, kwargs: dict[str, Any]) -> None:
            module.told.append((method, kwargs))

        def reset_prefix_cache(self) -> bool:
            module.told.append(("reset_prefix_cache", {}))
            return True

        def generate(self, asked: list[dict[str, list[int]]], parameters: list[Any], use_tqdm: bool) -> list[Any]:
            return [
                SimpleNamespace(outputs=[_output(model, a["prompt_token_ids"], p, shift, ended)])
                for a, p in zip(asked, parameters, strict=True)
            ]

    module.LLM, module.SamplingParams, module.told = LLM, SimpleNamespace, []  # type: ignore[attr-defined]
    return module


def _output(model: Decoder, prompt: list[int], p: Any, shift: float, ended: str | None) -> Any:
    sampling = Sampling(
        max_new_tokens=p.max_tokens,
        temperature=p.temperature,
        top_k=p.top_k or None,
        top_p=p.top_p if p.top_p < 1 else None,
        min_p=p.min_p or None,
        repetition_penalty=p.repetition_penalty,
        banned_ids=tuple(p.logit_bias or ()),
        stop_ids=tuple(p.stop_token_ids),
    )
    rollout = generate(model, [prompt], sampling, seed=p.seed)
    ids, stopped = rollout.completion(0), rollout.stop_reason[0] == "stop_id"
    return SimpleNamespace(
        token_ids=tuple(ids),
        logprobs=[
            {i: SimpleNamespace(logprob=_logprob(model, [*prompt, *ids[:at]], i, p) + shift)}
            for at, i in enumerate(ids)
        ],
        finish_reason=ended or ("stop" if stopped else "length"),
        stop_reason=ids[-1] if stopped else None,
    )


@torch.no_grad()
def _logprob(model: Decoder, before: list[int], token: int, p: Any) -> float:
    z_V = model.logits(model(torch.tensor([before]), torch.arange(len(before))[None]))[0, -1]
    for index, bias in (p.logit_bias or {}).items():
        z_V[index] += bias
    seen = torch.tensor(sorted(set(before)))
    z_V[seen] = torch.where(z_V[seen] > 0, z_V[seen] / p.repetition_penalty, z_V[seen] * p.repetition_penalty)
    return float((_truncated(z_V / p.temperature, p) if p.temperature else z_V).log_softmax(-1)[token])


def _truncated(z_V: Tensor, p: Any) -> Tensor:
    p_V = z_V.softmax(-1)
    z_V = z_V.masked_fill(p_V < p.min_p * p_V.max(), -torch.inf)
    if p.top_k:
        z_V = z_V.masked_fill(z_V < z_V.topk(p.top_k).values[-1], -torch.inf)
    sorted_V, order_V = z_V.sort()
    drop_V = sorted_V.softmax(-1).cumsum(-1) <= 1 - p.top_p
    drop_V[-1] = False
    return z_V.index_fill(0, order_V[drop_V], -torch.inf)
