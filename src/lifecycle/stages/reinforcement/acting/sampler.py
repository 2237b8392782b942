"""Samples of a step: completions of its prompts, drawn from the policy as it stands.

Every draw follows from (seed of the run, step, number of the prompt in the step, number of the sample) alone: a step
that is taken again draws the same samples, on any number of ranks. What the engine computes together follows from the
step as well, whether it is made anew in each step or stays in memory (kept_engine.py).
"""

from __future__ import annotations

from dataclasses import replace

from lifecycle.batch import PromptBatch, Rollout
from lifecycle.model import Decoder
from lifecycle.rollout.kept_engine import KeptEngine
from lifecycle.rollout.sampling.parameters import Sampling
from lifecycle.stages.reinforcement.acting.records import records_of
from lifecycle.stages.reinforcement.settings import SamplingKeys
from lifecycle.stages.run.setup import Setup
from lifecycle.system.foreign import check_text
from lifecycle.system.seeds import derive


class PolicySampler:
    """Draws from a policy. Its state is what no config says of the draws: the text of an environment of the user's."""

    def __init__(self, keys: SamplingKeys, setup: Setup) -> None:
        self._keys, self._setup, self._engine = keys, setup, KeptEngine(keys.keep_engine)
        keys.environment.check()
        self._text = keys.environment.text  # as it is imported; the file may be edited while the run goes on

    def state(self) -> str | None:
        """For the checkpoint."""
        return self._text

    def restore(self, state: str | None) -> None:
        """Raise UserError where the run began with another text."""
        if state is not None:
            name = self._keys.environment.name
            check_text(state, self._text, of=f"stage.environment.name={name}", does="answers")

    def rollout(self, prompts: PromptBatch, network: Decoder, *, step: int) -> Rollout:
        """`samples_per_prompt` completions of each prompt, those of a prompt together. Every rank must call."""
        samples = self._setup.timeline.at(step).samples
        return self._drawn(prompts, network, self._sampling(network, samples=samples, step=step), step=step)

    def apart(self, prompts: PromptBatch, network: Decoder, *, step: int, samples: int, purpose: str) -> Rollout:
        """So many completions of each prompt, whose draws are none of `rollout`'s. Every rank must call."""
        sampling = self._sampling(network, samples=samples, step=step)
        return self._drawn(prompts, network, sampling, step=step, seed=derive(self._setup.seed, purpose))

    def greedy(self, prompts: PromptBatch, network: Decoder) -> Rollout:
        """The most probable completion of each prompt. Every rank must call."""
        sampling = self._sampling(network, samples=1)
        return self._drawn(prompts, network, replace(sampling, temperature=0.0, top_k=None, top_p=None, min_p=None))

    def _sampling(self, network: Decoder, *, samples: int, step: int = 0) -> Sampling:
        setup = self._setup
        assert setup.tokenizer is not None
        keys = self._keys.sampling
        drawing = replace(keys, temperature=setup.timeline.at(step).temperature or keys.temperature)
        return drawing.sampling(setup.tokenizer, setup.end_ids, network.config.vocab, samples=samples)

    def _drawn(
        self, prompts: PromptBatch, network: Decoder, sampling: Sampling, *, step: int = 0, seed: int | None = None
    ) -> Rollout:
        setup, environments = self._setup, None
        if self._keys.environment.name is not None:
            assert setup.tokenizer is not None
            environments = self._keys.environment.of(records_of(prompts, setup), setup.tokenizer)
        settings = {"slots": self._keys.slots, "head_dtype": self._keys.head, "notes_experts": True}
        with self._engine.of(network, **settings) as engine:
            return engine.generate(
                prompts.ids,
                sampling,
                seed=self._setup.seed if seed is None else seed,
                step=step,
                tokenizer=self._setup.tokenizer,
                prompt_ids=prompts.number.tolist(),
                environments=environments,
            )
