"""The sampling engine: (model, prompts, sampling) -> Rollout, for evaluation, reinforcement learning and serving.

    rollout = generate(model, [[1, 5, 9], [1, 7]], Sampling(max_new_tokens=64, samples=8), seed=1)

    engine = Engine(model, slots=64)                  # keeps the cache and what was compiled between calls
    rollout = engine.generate(prompts, sampling, seed=1, step=step)
    for new in engine.stream(prompts, sampling, seed=1): ...

    admit waiting sequences -> prefill one chunk of their prompts | decode one token of every row -> finish -> again

Continuous batching over the rows of one cache, which grows with the longest of them (see scheduler.py, cache_room.py);
the host reads from the device once a step. A sequence's draws depend on (seed, step, prompt, sample) alone. Kernels may
round differently in other shapes, so batch size or neighbours can change a draw that was near the edge, in bf16 more
often than in fp32; with `deterministic` the shape of every product follows from the sequence alone, and they cannot.

Shapes: N sequences, R rows decoded, B lines of a prefill, T positions or most new tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial

import torch
from torch import distributed

from lifecycle.batch import Rollout
from lifecycle.errors import UserError
from lifecycle.model import Decoder, ModelConfig, fixed_shapes
from lifecycle.rollout.cache_room import Room
from lifecycle.rollout.decode_step import DecodeStep, prefill_tokens
from lifecycle.rollout.decoder.backend import cache_dtype, compute_dtype, is_plain, prepare, why_not_recorded
from lifecycle.rollout.environments.environment import Environments
from lifecycle.rollout.output import best
from lifecycle.rollout.request import Call, NewToken, OneAtATime
from lifecycle.rollout.sampling.noted import AHEAD
from lifecycle.rollout.sampling.parameters import Sampling
from lifecycle.rollout.sampling.stop_conditions import Decoding
from lifecycle.rollout.scheduler import POSITION, Ints
from lifecycle.rollout.weights_version import Version, optimizer_steps

TILE = 8
"""Rows of every product in deterministic decoding."""

FIXED_CHUNK = 64
"""Positions of every prefill in deterministic mode."""

AHEAD_BYTES = 1 << 28
"""Of what the steps chose from that a GPU makes before the host looks."""

OnToken = Callable[[int, int, int], None]


def generate(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    seed: int,
    step: int = 0,
    tokenizer: Decoding | None = None,
    prompt_ids: Sequence[int] | None = None,
    weights_version: int | None = None,
    slots: int = 32,
    prefill_chunk: int | None = None,
    deterministic: bool = False,
    head_dtype: torch.dtype | None = None,
    notes_experts: bool = False,
    environments: Environments | None = None,
    on_token: OnToken | None = None,
) -> Rollout:
    """One call of `Engine.generate` of a new `Engine`; arguments, result and errors are those of the two."""
    engine = Engine(
        model,
        slots=slots,
        prefill_chunk=prefill_chunk,
        deterministic=deterministic,
        head_dtype=head_dtype,
        notes_experts=notes_experts,
    )
    return engine.generate(
        prompts,
        sampling,
        seed=seed,
        step=step,
        tokenizer=tokenizer,
        prompt_ids=prompt_ids,
        weights_version=weights_version,
        environments=environments,
        on_token=on_token,
    )


class Engine:
    """Samples from one model. Its weights may change in place between calls: every call checks (weights_version.py).

    slots: sequences decoded at a time. prefill_chunk: tokens of prompts in one forward pass; None: as suits the device.
    deterministic: no sequence depends on the others in any bit. compiled: the decode step goes through torch.compile.
    graphs: it is recorded as CUDA graphs (None: on CUDA, where it can be, see `why_not_recorded`). dtype: of the cache;
    None is the compute dtype. head_dtype: of the product that gives logits, where it is the wider; None is the compute
    dtype.
    notes_experts: rollouts say which experts were visited (`Rollout.experts`).

    Call it under autocast for bf16 over fp32 weights, or give it bf16 weights. Over a sharded model every rank calls,
    with prompts of its own, and all step until all are done.
    """

    def __init__(
        self,
        model: Decoder,
        *,
        slots: int = 32,
        prefill_chunk: int | None = None,
        deterministic: bool = False,
        compiled: bool = False,
        graphs: bool | None = None,
        dtype: torch.dtype | None = None,
        head_dtype: torch.dtype | None = None,
        notes_experts: bool = False,
    ) -> None:
        self._device = model.embedding.weight.device
        prefill_chunk = prefill_tokens(self._device) if prefill_chunk is None else prefill_chunk
        if slots < 1 or prefill_chunk < 1:
            raise UserError(f"the engine has slots={slots}, prefill_chunk={prefill_chunk}; both must be 1 or more")
        if deterministic and (compiled or graphs):
            raise UserError("deterministic steps run eagerly: leave out compiled (hardware.compile=false) and graphs")
        self._model, self._slots, self._prefill_chunk, self._deterministic = model, slots, prefill_chunk, deterministic
        self._compiled, self._dtype, self._notes_experts = compiled, dtype, notes_experts
        self._prepare = partial(prepare, packed=not compiled, cache=dtype, head=head_dtype, notes_experts=notes_experts)
        self._plain = is_plain(model)
        self._shared = not self._plain and distributed.is_available() and distributed.is_initialized()
        if deterministic and self._shared:
            raise UserError(
                "deterministic sampling over several ranks: their products depend on the rows of each and would come "
                "apart; sample on one device, or without deterministic"
            )
        self._asked_graphs, self._graphs = graphs, False
        self._step: DecodeStep | None = None
        self._prefill_model = model
        self._prepared_for: tuple[torch.dtype, ModelConfig] | None = None
        self._alone = OneAtATime()
        optimizer_steps()  # counted from now on

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        seed: int,
        step: int = 0,
        tokenizer: Decoding | None = None,
        prompt_ids: Sequence[int] | None = None,
        weights_version: int | None = None,
        environments: Environments | None = None,
        on_token: OnToken | None = None,
    ) -> Rollout:
        """Completions of all prompts, in their order, those of a prompt together (the best first with best_of).

        prompts: token ids, at least one each. prompt_ids: their stable numbers, which the seeds derive from; None
        counts them. tokenizer: for the text, and for stop strings. weights_version: what the rollout says, None is the
        model's own. environments: what answers in between. on_token(prompt, sample, token) sees every token. Errors:
        `UserError` for prompts that are empty, too long or not of the vocabulary, and where logits are not finite.
        """
        with self._alone:
            watched = on_token is not None
            given = prompts, sampling, seed, step, prompt_ids, tokenizer, environments
            call = self._begin(*given, watched=watched, sets=True)
            for new in self._run(call, watched=watched):
                if on_token is not None:
                    on_token(new.prompt, new.sample, new.token)
        rollout = call.out.rollout(
            [prompt for prompt in prompts for _ in range(sampling.drawn)],
            samples=sampling.drawn,
            prompt_ids=[number for number in call.numbers for _ in range(sampling.drawn)],
            seeds=call.seeds,
            tokenizer=tokenizer,
            weights_version=self._model.weights_version if weights_version is None else weights_version,
            dialogues=None if call.turns is None else call.turns.dialogues(),
        )
        return rollout if sampling.best_of is None else best(rollout, sampling)

    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        seed: int,
        step: int = 0,
        tokenizer: Decoding | None = None,
        prompt_ids: Sequence[int] | None = None,
    ) -> Generator[NewToken, None, None]:
        """The tokens of all completions, those of one decode step after another. Until the last is read, or the
        stream is closed, the engine takes no other call."""
        with self._alone:
            call = self._begin(prompts, sampling, seed, step, prompt_ids, tokenizer, None, watched=True, sets=False)
            yield from self._run(call, watched=True)

    @property
    def graphs(self) -> bool:
        """Whether the decode steps of the last call were recorded as CUDA graphs."""
        return self._graphs

    # -- a call

    def _begin(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        seed: int,
        step: int,
        prompt_ids: Sequence[int] | None,
        tokenizer: Decoding | None,
        environments: Environments | None,
        *,
        watched: bool,
        sets: bool,
    ) -> Call:
        sampling.check_ids(self._model.config.vocab)
        dtype = compute_dtype(self._model)  # the caller's: the context below leaves autocast
        self._graphs = self._records(dtype)
        call = Call.of(
            prompts,
            sampling,
            seed=seed,
            step=step,
            prompt_ids=prompt_ids,
            tokenizer=tokenizer,
            environments=environments,
            positions=self._model.config.max_positions,
            vocab=self._model.config.vocab,
            slots=self._slots,
            prefill_tokens=FIXED_CHUNK if self._deterministic else self._prefill_chunk,
            together=not self._deterministic,
            powers=self._graphs or self._compiled,
            ahead=1 if watched else self._ahead(),
            sets=sets,
            device=self._device,
        )
        moe = self._model.config.moe
        if self._notes_experts and moe is not None:
            call.out.note_experts(self._model.config.layers - moe.first_dense, moe.active)
        with self._context():
            self._make_ready(sampling, call.room, dtype)
        return call

    def _records(self, dtype: torch.dtype) -> bool:
        """Whether decode steps with products in `dtype` are recorded as CUDA graphs."""
        if self._asked_graphs is False or (self._asked_graphs is None and self._device.type != "cuda"):
            return False
        why_not = why_not_recorded(self._model, dtype, packed=not self._compiled, cache=self._dtype)
        if why_not is not None and self._asked_graphs:
            raise UserError(f"graphs=True: steps of this model cannot be recorded: {why_not}. Leave graphs out")
        return why_not is None

    def _make_ready(self, sampling: Sampling, room: Room, dtype: torch.dtype) -> None:
        """Make cache, weights for products in `dtype`, and buffers; those of the last call are kept where they fit."""
        wanted = dtype, self._model.config  # a stage moves the rotary base of the latter
        if self._step is None or self._prepared_for != wanted:
            rows = TILE if self._deterministic else self._slots
            self._prefill_model, decode = self._prepare(self._model, rows=rows, dtype=dtype)
            self._step = DecodeStep(
                decode, slots=self._slots, device=self._device, compiled=self._compiled, graphs=self._graphs
            )
            self._prepared_for = wanted
        self._step.refresh(Version.of(self._model))
        held = self._dtype or cache_dtype(self._model, self._step.decode, dtype)
        self._step.make_room(room, self._model.config, held)
        self._step.set_sampling(sampling, vocab=self._model.config.vocab)
        self._step.share({}, [])

    def _run(self, call: Call, *, watched: bool) -> Iterator[NewToken]:
        """Step until all sequences have ended: one forward pass a round, the same number on every rank."""
        schedule, step = call.schedule, self._step
        assert step is not None
        prefilled_last = False
        while self._anyone(schedule.busy):
            with self._context():
                step.copy(schedule.admit())
                # alternately where somebody waits for tokens of active rows; else steps have all rows they can
                prefilled_last = schedule.prefilling and not (watched and prefilled_last and schedule.active)
                if prefilled_last:
                    chunk = schedule.chunk()
                    width = FIXED_CHUNK if self._deterministic else chunk.width
                    step.prefill(self._prefill_model, chunk, width=width)
                    schedule.prefilled(chunk)
                    continue
                if not schedule.active:
                    step.empty_pass(self._model)
                    continue
                news, ended = call.take(self._decode(call), watched=watched)
                step.copy(schedule.finish(ended))
            yield from news

    # -- on the device

    def _ahead(self) -> int:
        """Decode steps that the host need not look at one by one. Ranks that share a model step together."""
        if self._device.type != "cuda" or self._shared or self._deterministic:
            return 1
        return max(1, min(AHEAD, AHEAD_BYTES // (self._slots * self._model.config.vocab)))

    def _decode(self, call: Call) -> Ints:
        """(T, rows): what some steps drew."""
        assert self._step is not None
        schedule, out = call.schedule, call.out
        if schedule.changed:
            self._step.set_table(schedule.table, schedule.take_entered())
            if not self._deterministic:  # other rows must not change the bits of a row
                self._step.share(schedule.groups(), schedule.prompts)
        if self._deterministic:
            return self._step.tiles(schedule.table, out, TILE)[None]
        return self._step.run(schedule.active, int(schedule.table[POSITION].max()) + 1, out, steps=call.steps())

    # -- ranks

    def _anyone(self, busy: bool) -> bool:
        if not self._shared:
            return busy
        flag = torch.tensor([int(busy)], device=self._device)
        distributed.all_reduce(flag, op=distributed.ReduceOp.MAX)
        return bool(flag)

    def _context(self) -> AbstractContextManager[object]:
        """No gradients, and autocast as the prepared weights want it."""
        stack = ExitStack()
        if self._deterministic:
            stack.enter_context(fixed_shapes())
        stack.enter_context(torch.no_grad() if self._shared else torch.inference_mode())
        device_type = self._device.type
        if torch.is_autocast_enabled(device_type):
            dtype = torch.get_autocast_dtype(device_type)
            # no cache: a training step around this call would get cast weights without gradients from it
            stack.enter_context(torch.autocast(device_type, dtype, enabled=not self._plain, cache_enabled=False))
        return stack
