"""vLLM behind the engine's function: for models and batches where its kernels are the faster ones.

    engine = VllmEngine(folder, scorer=model)                # an exported folder, and the same weights in our model
    rollout = engine.generate(prompts, sampling, seed=1)     # rollout.meta["mismatch"]: how far the two disagree

vLLM (0.11 and later, the V1 engine) draws with its own generators and kernels. Its log-probabilities under the sampling
distribution are kept as they are, because importance ratios need the distribution that was really drawn from;
everything else of the rollout comes from a scoring pass of our model, and so does the mismatch. Install it with
`pip install lifecycle[vllm]`; it wants an accelerator.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lifecycle.batch import Rollout, StopReason
from lifecycle.errors import UserError
from lifecycle.model import Decoder
from lifecycle.rollout.call import sequences
from lifecycle.rollout.collect import best
from lifecycle.rollout.sampling import Sampling
from lifecycle.rollout.score import Scored, score
from lifecycle.rollout.stopping import Decoding, check_stops

BANNED_BIAS = -100.0
"""vLLM's least bias of a logit."""


class VllmEngine:
    """Samples with vLLM from the model in `folder`; `scorer` holds the same weights.

    memory_share: of the accelerator's memory that vLLM may take. Errors: `UserError` where vLLM is not installed.
    """

    def __init__(self, folder: Path, *, scorer: Decoder, dtype: str = "auto", memory_share: float = 0.5) -> None:
        try:
            self._vllm = importlib.import_module("vllm")
        except ImportError as error:
            raise UserError(
                f"the vLLM engine needs vLLM, which cannot be imported ({error}); pip install 'lifecycle[vllm]', or "
                "use lifecycle.rollout.Engine"
            ) from error
        self._scorer = scorer
        self._llm = self._vllm.LLM(
            model=str(folder),
            dtype=dtype,
            gpu_memory_utilization=memory_share,
            max_model_len=scorer.config.max_positions,
            enable_prefix_caching=True,  # a prompt is prefilled once for its samples
            logprobs_mode="processed_logprobs",  # after penalty, temperature and truncation: what was drawn from
        )

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        seed: int,
        step: int = 0,
        tokenizer: Decoding | None = None,
        prompt_ids: Sequence[int] | None = None,
        weights_version: int = 0,
    ) -> Rollout:
        """As `lifecycle.rollout.Engine.generate`; meta["mismatch"] has mean and max of |vLLM's - our| log-probability
        over all tokens, in nats. The draws are not those of our engine."""
        config = self._scorer.config
        numbers, seeds, limits = sequences(
            *(prompts, sampling),
            seed=seed,
            step=step,
            prompt_ids=prompt_ids,
            positions=config.max_positions,
            vocab=config.vocab,
        )
        check_stops(sampling, tokenizer)
        each = [
            (prompt, number, s) for prompt, number in zip(prompts, numbers, strict=True) for s in range(sampling.drawn)
        ]
        outputs = self._llm.generate(
            [{"prompt_token_ids": list(prompt)} for prompt, _, _ in each],
            [self._parameters(sampling, s, limit) for s, limit in zip(seeds, limits, strict=True)],
            use_tqdm=False,
        )
        found = [output.outputs[0] for output in outputs]
        scored = [
            score(self._scorer, prompt, list(one.token_ids), sampling)
            for (prompt, _, _), one in zip(each, found, strict=True)
        ]
        rollout = Rollout(
            prompt_id=torch.tensor([number for _, number, _ in each], dtype=torch.long),
            sample=torch.tensor([sample for _, _, sample in each], dtype=torch.long),
            seed=torch.tensor(seeds, dtype=torch.long),
            prompts=[list(prompt) for prompt, _, _ in each],
            text=["" if tokenizer is None else tokenizer.decode(list(one.token_ids)) for one in found],
            stop_reason=[_reason(one, sampling, limit) for one, limit in zip(found, limits, strict=True)],
            weights_version=weights_version,
            **_tensors(found, scored),
        )
        return rollout if sampling.best_of is None else best(rollout, sampling)

    def _parameters(self, sampling: Sampling, seed: int, limit: int) -> Any:
        return self._vllm.SamplingParams(
            n=1,
            seed=seed,
            max_tokens=limit,
            temperature=sampling.temperature,
            top_k=sampling.top_k or 0,
            top_p=1.0 if sampling.top_p is None else sampling.top_p,
            min_p=0.0 if sampling.min_p is None else sampling.min_p,
            repetition_penalty=sampling.repetition_penalty,
            logit_bias={token: BANNED_BIAS for token in sampling.banned_ids} or None,
            stop_token_ids=list(sampling.stop_ids),
            stop=list(sampling.stop_strings),
            include_stop_str_in_output=True,
            ignore_eos=True,  # stop_ids says what ends a completion
            logprobs=0,  # of the drawn token alone
        )


def _reason(one: Any, sampling: Sampling, limit: int) -> StopReason:
    if one.finish_reason == "stop":
        return "stop_string" if isinstance(one.stop_reason, str) else "stop_id"
    return "length" if limit == sampling.max_new_tokens else "capacity"


def _tensors(found: Sequence[Any], scored: Sequence[Scored]) -> dict[str, Any]:
    """The tensors of a rollout, and its meta."""
    longest = max((len(one.token_ids) for one in found), default=0)
    token_ids = torch.zeros(len(found), longest, dtype=torch.long)
    facts = torch.zeros(4, len(found), longest)
    mask = torch.zeros(len(found), longest, dtype=torch.bool)
    gaps = []
    for row, (one, own) in enumerate(zip(found, scored, strict=True)):
        ids = list(one.token_ids)
        theirs = torch.tensor([at[token].logprob for at, token in zip(one.logprobs, ids, strict=True)])
        token_ids[row, : len(ids)], mask[row, : len(ids)] = torch.tensor(ids), True
        facts[:, row, : len(ids)] = torch.stack((theirs, *own[1:]))
        gaps.append((theirs - own.logprobs).abs())
    gap = torch.cat(gaps) if gaps else torch.zeros(1)
    names = ("logprobs", "full_logprobs", "entropy", "threshold")
    mismatch = {"mean": float(gap.mean()), "max": float(gap.max())}
    return {
        "token_ids": token_ids,
        "mask": mask,
        **dict(zip(names, facts, strict=True)),
        "meta": {"engine": "vllm", "mismatch": mismatch},
    }
