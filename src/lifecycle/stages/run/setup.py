"""Facts of the run that a stage needs (lengths, seeds, names, choices of the machine), and the decoder built by them:
whole or sharded, compiled or not, with fresh weights or a parent's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from lifecycle.duration import Timeline
from lifecycle.errors import UserError
from lifecycle.model import Decoder, ModelConfig, best_kernel, build, check_kernel, compile_model
from lifecycle.model.adapters import add_adapter, first_weights, live_base
from lifecycle.model.layers.attention import Kernel
from lifecycle.model.layers.gpu.fp8 import Recipe, use_fp8
from lifecycle.model.lora import Adapter
from lifecycle.model.precision import dtype_of
from lifecycle.model.sharding import load_sharded, shard
from lifecycle.rollout.user_prompts import ChatTokenizer


@dataclass(frozen=True, kw_only=True)
class ParentWeights:
    """Weights of another model that the run began with, as files: there for a run that goes on, too.

    read: fp32, by our names. sha256: of the files. Both raise `UserError` where the run had begun with others. cache: a
    folder for what the weights say, which can be derived again.
    """

    read: Callable[[], Mapping[str, Tensor]]
    sha256: Callable[[], str]
    cache: Callable[[], Path]


@dataclass(frozen=True, kw_only=True)
class TeacherModel:
    """A trained model that a stage learns from: its sizes, its weights, and what to call it in messages."""

    name: str
    config: ModelConfig
    weights: ParentWeights


@dataclass(frozen=True, kw_only=True)
class AskedModel:
    """A trained model that a stage asks, for scores or for answers: its sizes, its weights, its tokenizer, and what to
    call it in messages.

    end_ids: of its tokens, those that end a completion, the last one a turn. same_tokens: whether tokenizer and chat
    template are those of the run, so that ids of the one are ids of the other. of_run: whether a run of ours has made
    it. read: the ids of a conversation by its own template, from the turns of the prompt and the answer, up to the
    token that ends the answer, or (True) to the end of what the template writes; or the reason why there are none.
    """

    name: str
    config: ModelConfig
    weights: ParentWeights
    tokenizer: ChatTokenizer
    end_ids: tuple[int, ...]
    same_tokens: bool
    of_run: bool
    read: Callable[[Sequence[Mapping[str, Any]], str, bool], list[int] | str]


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What every stage gets from the run, beside its config.

    timeline: steps of the run, size and rate factor of each. domains: validation domain -> (weight, bytes of its text).
    validate_every, log_every: steps; None: never. validation_samples: drawn for each
    held-out prompt, of a stage that samples. bf16: compute in bf16 (autocast), weights in fp32. fp8: how the
    blocks' linear layers multiply in training (model/layers/gpu/fp8.py); None: as the rest. peak_flops: dense
    peak of one device in FLOP/s; None: unknown, no MFU. read_weights: reads the parent's weights; None: fresh ones.
    initial_optimizer: state of the parent's optimizer; None: zero moments. Both are None in a run that is resumed,
    whose checkpoint has its own. parent: the weights that the run began with; None without a parent. adapter:
    trained in place of the weights, which are then the parent's at every start; None: all weights are trained.
    teacher: of a stage that learns from one. asked: other models that the stage asks, by the key of `stage` that names
    each. tokens: of the tokenizer, which may be fewer than the model has rows for;
    None where no text is sampled. end_ids: those of them that end a completion. tokenizer: of the run. token_id: of a
    token by its name; None where there is none. micro_batch_tokens: positions that a device computes on at once.
    source_rewards: of each source, the weights of its own rewards by name; None: those of the stage. folder: of the
    run.
    """

    timeline: Timeline
    seed: int
    source_names: Sequence[str]
    domains: Mapping[str, tuple[float, int | None]]
    validate_every: int | None
    log_every: int | None
    bf16: bool
    compile: bool
    activation_checkpointing: bool
    attention: Kernel | Literal["auto"]
    peak_flops: float | None
    read_weights: Callable[[], Mapping[str, Tensor]] | None = None
    initial_optimizer: Mapping[str, Any] | None = None
    parent: ParentWeights | None = None
    adapter: Adapter | None = None
    teacher: TeacherModel | None = None
    asked: Mapping[str, AskedModel] = field(default_factory=dict)
    tokens: int | None = None
    end_ids: tuple[int, ...] = ()
    tokenizer: ChatTokenizer | None = None
    micro_batch_tokens: int = 0
    source_rewards: Sequence[Mapping[str, float] | None] = ()
    token_id: Callable[[str], int | None] = lambda name: None
    folder: Path | None = None
    validation_samples: int = 0
    fp8: Recipe | None = None

    def build(self, config: ModelConfig, mesh: DeviceMesh | None) -> Decoder:
        """The decoder of `config` with its parent's weights, or initialised by the run's seed; sharded over `mesh` if
        there is one. With an adapter, where one is trained: the weights are the parent's then."""
        read = self._read_base if self.adapter is not None else self.read_weights
        if mesh is not None:
            return self._build_sharded(config, mesh, read, self.adapter, fp8=self.fp8)
        model = build(config, seed=self.seed, activation_checkpointing=self.activation_checkpointing)
        if read is not None:
            model.load_state_dict(read())
        if self.adapter is not None:
            add_adapter(model, self.adapter, seed=self.seed)
        if self.fp8 is not None:
            use_fp8(model, self.fp8)
        if self.compile:
            compile_model(model, unit="model")
        return model

    def build_frozen(
        self,
        config: ModelConfig,
        mesh: DeviceMesh | None,
        read: Callable[[], Mapping[str, Tensor]],
        *,
        dtype: torch.dtype | None = None,
        head: torch.dtype | None = None,
    ) -> Decoder:
        """A decoder with the weights that `read` gives, which is only asked: it computes as the trained one does, in
        the same precision and with the same kernels, and where it is whole its weights have the type of the products.
        dtype, head: another for the weights, and for the head; None: that of the products, and of the weights."""
        if mesh is not None:
            return self._build_sharded(config, mesh, read, None).eval().requires_grad_(False)
        with torch.device("meta"):
            model = Decoder(config)
        kept = dtype or (torch.bfloat16 if self.bf16 else torch.float32)
        of_head = "embedding.weight" if config.tied_head else "head.weight"
        dtypes = {name: (head if name == of_head else None) or dtype_of(name, kept) for name in model.state_dict()}
        model.load_state_dict({name: w.to(dtypes[name]) for name, w in read().items()}, assign=True)
        if self.compile:
            compile_model(model, unit="model")
        return model.eval().requires_grad_(False)

    def _build_sharded(
        self,
        config: ModelConfig,
        mesh: DeviceMesh,
        read: Callable[[], Mapping[str, Tensor]] | None,
        adapter: Adapter | None,
        *,
        fp8: Recipe | None = None,
    ) -> Decoder:
        """Sharded before it has any memory, then filled tensor by tensor: no rank ever holds the whole model."""
        with torch.device("meta"):
            model = Decoder(config, activation_checkpointing=self.activation_checkpointing).float()
        if adapter is not None:
            add_adapter(model, adapter, seed=self.seed)
        if fp8 is not None:
            use_fp8(model, fp8)
        if self.compile:
            compile_model(model, unit="block")
        shard(model, mesh, param_dtype=torch.bfloat16 if self.bf16 else torch.float32, reduce_dtype=torch.float32)
        on_cpu = mesh.device_type == "cpu"
        model.to_empty(device=torch.device("cpu" if on_cpu else f"cuda:{torch.cuda.current_device()}"))
        if read is None:
            model.init_weights(seed=self.seed)
        else:
            load_sharded(model, _on_rank_0(lambda: self._live_weights(config, read(), adapter)))
        return model

    def _read_base(self) -> Mapping[str, Tensor]:
        assert self.parent is not None, "an adapter sits beside a parent's weights"
        return self.parent.read()

    def _live_weights(
        self, config: ModelConfig, weights: Mapping[str, Tensor], adapter: Adapter | None
    ) -> Mapping[str, Tensor]:
        """The weights, and what an adapter begins with, under their names in the network."""
        if adapter is None:
            return weights
        return {
            **live_base(weights, config, adapter),
            **first_weights(config, adapter, weights, seed=self.seed),
        }

    def shares_prompts(self, config: ModelConfig, kernel: Kernel) -> bool:
        """Whether both answers of a pair can be computed behind one prompt: by a mask, which knows no distances, in
        rows whose number may vary; what a model of scores counts for its experts, it counts in every answer."""
        eager = kernel == "sdpa" and not self.compile
        return eager and config.sliding_window is None and not (config.score_head and config.moe is not None)

    def kernel(self, device: torch.device) -> Kernel:
        """The attention kernel of the run: the config's, or the fastest that is installed."""
        if self.attention == "auto":
            return best_kernel(device, torch.bfloat16 if self.bf16 else torch.float32)
        check_kernel(self.attention, device)
        return self.attention


def _on_rank_0(read: Callable[[], Mapping[str, Tensor]]) -> Mapping[str, Tensor] | None:
    """The weights on rank 0, None on the others; where they cannot be read, all ranks raise the same `UserError`."""
    weights, faults = None, [""]
    if torch.distributed.get_rank() == 0:
        try:
            weights = read()
        except UserError as fault:
            faults = [str(fault)]
    torch.distributed.broadcast_object_list(faults, src=0)
    if faults[0]:
        raise UserError(faults[0])
    return weights
