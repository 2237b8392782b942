"""vLLM with the interface of our engine: for models and batches where its kernels are faster.

    engine = VllmEngine(folder, scorer=model)                # an exported folder, and the same weights in our model
    rollout = engine.generate(prompts, sampling, seed=1)     # rollout.meta["mismatch"]: how far the two disagree
    engine.refresh(folder, weights_version=1)                # other weights, in the scorer as well

vLLM draws with its own generators and kernels. Its log-probabilities under the sampling distribution are kept as they
are, because importance ratios need the distribution that was really drawn from; everything else of the rollout comes
from a scoring pass of our model, and so does the mismatch. Settings that vLLM would read otherwise than our engine are
refused. Install it with `pip install lifecycle[vllm]`; it wants an accelerator.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lifecycle.batch import Kept, Rollout, StopReason
from lifecycle.errors import UserError
from lifecycle.model import Decoder
from lifecycle.rollout.decoder.backend import compute_dtype
from lifecycle.rollout.output import best
from lifecycle.rollout.request import sequences
from lifecycle.rollout.sampling.parameters import Sampling
from lifecycle.rollout.sampling.score import Scored, score
from lifecycle.rollout.sampling.stop_conditions import Decoding, check_stops
from lifecycle.rollout.weights_version import Version

BANNED_BIAS = -100.0
"""vLLM's least bias of a logit."""

MOST_BIASED = 1024
"""Tokens that may have a bias in a request of vLLM (MAX_NUM_LOGIT_BIAS_TOKENS of its GPU runner)."""

TEMPERATURES = (0.01, 2.0)
"""vLLM raises lower ones to the first, with a warning alone, and refuses those above the second."""


class VllmEngine:
    """Samples with vLLM from the model in `folder`; `scorer` holds the same weights.

    dtype: of vLLM's products; None is the scorer's compute dtype, so that the mismatch is not that of two precisions.
    slots, prefill_chunk: as in our engine. compiled: False runs vLLM without torch.compile and graphs. memory_share: of
    the accelerator's memory that vLLM may take. Errors: `UserError` where vLLM is not installed, or leaves a part of
    the model out.
    """

    def __init__(
        self,
        folder: Path,
        *,
        scorer: Decoder,
        weights_version: int = 0,
        dtype: torch.dtype | None = None,
        slots: int = 32,
        prefill_chunk: int = 1024,
        compiled: bool = True,
        memory_share: float = 0.5,
    ) -> None:
        try:
            self._vllm = importlib.import_module("vllm")
        except ImportError as error:
            raise UserError(
                f"the vLLM engine needs vLLM, which cannot be imported ({error}): pip install 'lifecycle[vllm]', or "
                "take our own (stage.engine=own, lifecycle.rollout.Engine)"
            ) from error
        if scorer.config.logit_softcap is not None:
            raise UserError(
                f"model.logit_softcap is {scorer.config.logit_softcap}, which vLLM's {scorer.config.family} leaves out "
                "of its draws: sample with our own engine (stage.engine=own)"
            )
        self._scorer, self._version, self._weights = scorer, weights_version, Version.of(scorer)
        self._has_tokenizer = (folder / "tokenizer_config.json").is_file()
        self._llm = self._vllm.LLM(
            model=str(folder),
            dtype=str(dtype or compute_dtype(scorer)).removeprefix("torch."),
            skip_tokenizer_init=not self._has_tokenizer,
            gpu_memory_utilization=memory_share,
            max_model_len=scorer.config.max_positions,
            max_num_seqs=slots,
            max_num_batched_tokens=max(slots, prefill_chunk),
            enforce_eager=not compiled,
            enable_prefix_caching=True,  # a prompt is prefilled once for its samples
            logprobs_mode="processed_logprobs",  # after penalty, temperature and truncation: what was drawn from
        )

    def refresh(self, folder: Path, *, weights_version: int) -> None:
        """Load the weights of another export of the same model, which the scorer must have too."""
        self._llm.collective_rpc("reload_weights", kwargs={"weights_path": str(folder)})
        self._llm.reset_prefix_cache()  # it holds keys and values of the weights before
        self._version, self._weights = weights_version, Version.of(self._scorer)

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
        over all tokens, in nats. The draws are not those of our engine.

        At temperature 0 vLLM gives the log-probabilities of temperature 1, so they are compared with our
        `full_logprobs`, and `logprobs` are our own. Errors: `UserError` for settings that vLLM reads otherwise than
        ours and for another version of the weights than vLLM has; `RuntimeError` for completions that it gave up.
        """
        self._check_weights(weights_version)
        check_stops(sampling, tokenizer)
        self._check(sampling)
        positions, vocab = self._scorer.config.max_positions, self._scorer.config.vocab
        sampling.check_ids(vocab)
        numbers, seeds, limits = sequences(
            prompts, sampling, seed=seed, step=step, prompt_ids=prompt_ids, positions=positions, vocab=vocab
        )
        each = [list(prompt) for prompt in prompts for _ in range(sampling.drawn)]
        found = self._draw(each, sampling, seeds, limits)
        scored = score(self._scorer, each, [one.token_ids for one in found], sampling)
        rollout = Rollout(
            prompt_id=torch.tensor(numbers, dtype=torch.long, device="cpu").repeat_interleave(sampling.drawn),
            sample=torch.arange(len(each), device="cpu") % sampling.drawn,
            seed=torch.tensor(seeds, dtype=torch.long, device="cpu"),
            prompts=each,
            text=["" if tokenizer is None else tokenizer.decode(list(one.token_ids)) for one in found],
            stop_reason=[_reason(one, sampling, limit) for one, limit in zip(found, limits, strict=True)],
            weights_version=weights_version,
            **_tensors(found, scored, greedy=sampling.temperature == 0),
        )
        return rollout if sampling.best_of is None else best(rollout, sampling)

    def _check_weights(self, weights_version: int) -> None:
        """Refuse to sample with other weights than those that were asked for, or than the scorer's."""
        if weights_version != self._version:
            raise UserError(
                f"vLLM has version {self._version} of the weights, and version {weights_version} is asked for: export "
                f"it and call refresh(folder, weights_version={weights_version}) first"
            )
        if not Version.of(self._scorer).surely_is(self._weights):
            raise UserError(
                "the scorer's weights have changed since vLLM read its own: export them and call refresh(folder, "
                "weights_version=...) first"
            )

    def _draw(
        self, prompts: Sequence[list[int]], sampling: Sampling, seeds: Sequence[int], limits: Sequence[int]
    ) -> list[Any]:
        """vLLM's completion of each prompt, by its seed and its most new tokens."""
        outputs = self._llm.generate(
            [{"prompt_token_ids": prompt} for prompt in prompts],
            [self._parameters(sampling, s, limit) for s, limit in zip(seeds, limits, strict=True)],
            use_tqdm=False,
        )
        return [output.outputs[0] for output in outputs]

    def _check(self, sampling: Sampling) -> None:
        """Refuse what vLLM would read otherwise than our engine, or not at all."""
        faults, (low, high) = [], TEMPERATURES
        if sampling.temperature and not low <= sampling.temperature <= high:
            faults.append(f"temperature is {sampling.temperature}; vLLM draws at 0 and from {low} to {high}")
        if sampling.min_p is not None and sampling.top_p is not None and sampling.top_p < 1:
            faults.append(
                f"min_p is {sampling.min_p} beside top_p={sampling.top_p}; vLLM takes top_p within what min_p kept, "
                "ours before it: leave one out"
            )
        if len(sampling.banned_ids) > MOST_BIASED:
            faults.append(
                f"{len(sampling.banned_ids)} tokens are banned (those that only fill the vocabulary up count); vLLM "
                f"takes {MOST_BIASED}"
            )
        if sampling.stop_strings and not self._has_tokenizer:
            faults.append("stop_strings are given, and the model's folder has no tokenizer for vLLM to look with")
        if faults:
            lines = "\n".join(f"  - {fault}" for fault in faults)
            raise UserError(f"vLLM cannot sample so; change it, or take our own engine (stage.engine=own):\n{lines}")

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
            detokenize=bool(sampling.stop_strings),  # the text of the rollout is our tokenizer's
            include_stop_str_in_output=True,
            ignore_eos=True,  # stop_ids says what ends a completion
            logprobs=0,  # of the drawn token alone
        )


def _reason(one: Any, sampling: Sampling, limit: int) -> StopReason:
    if one.finish_reason == "stop":
        return "stop_string" if isinstance(one.stop_reason, str) else "stop_id"
    if one.finish_reason == "length":
        return "length" if limit == sampling.max_new_tokens else "capacity"
    raise RuntimeError(
        f"vLLM ended a completion of {len(one.token_ids)} tokens with {one.finish_reason!r}, not with 'stop' or "
        "'length': its log above says why"
    )


def _tensors(found: Sequence[Any], scored: Sequence[Scored], *, greedy: bool) -> dict[str, Any]:
    """The tensors of a rollout, and its meta."""
    length = torch.tensor([len(one.token_ids) for one in found], dtype=torch.long, device="cpu")
    longest = int(length.max()) if found else 0
    token_ids = torch.zeros(len(found), longest, dtype=torch.long, device="cpu")
    facts = torch.zeros(3, len(found), longest, dtype=torch.float32, device="cpu")
    gaps, sets = [torch.zeros(0, dtype=torch.float32, device="cpu")], [Kept.whole(0)]
    for n, (one, own) in enumerate(zip(found, scored, strict=True)):
        ids = list(one.token_ids)
        drawn = [at[token].logprob for at, token in zip(one.logprobs, ids, strict=True)]
        theirs = torch.tensor(drawn, dtype=torch.float32, device="cpu")
        token_ids[n, : len(ids)] = torch.tensor(ids, device="cpu")
        facts[:, n, : len(ids)] = torch.stack((own.logprobs if greedy else theirs, *own[1:3]))
        gaps.append((theirs - (own.full_logprobs if greedy else own.logprobs)).abs())
        sets += [own.kept, Kept.whole(longest - len(ids))]
    gap = torch.cat(gaps)
    mismatch = {"mean": float(gap.mean()), "max": float(gap.max())} if len(gap) else {"mean": 0.0, "max": 0.0}
    return {
        "token_ids": token_ids,
        "length": length,
        "sampled": torch.arange(longest, device="cpu") < length[:, None],
        **dict(zip(("logprobs", "full_logprobs", "entropy"), facts, strict=True)),
        "kept": Kept.joined(sets),
        "meta": {"engine": "vllm", "mismatch": mismatch},
    }
