"""What fine-tuning with us is compared with: a plain compiled loop over a model of transformers, and TRL's trainers.

The loop does what users do: fp32 weights, autocast to bf16, sdpa, fused AdamW. SFT on packed rows whose mask keeps
conversations apart; DPO on pairs padded to the longest, both sides in one forward pass, the reference in a second one,
or computed once.
"""

from __future__ import annotations

import gc
import tempfile
import time
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.conversations import counting, trainer_keys
from benchmarks.gpu_finetune_inputs import Inputs
from benchmarks.gpu_sizes import Sizes
from lifecycle.model import DocumentMask, ModelConfig, build
from lifecycle.model.huggingface.export_folder import to_huggingface

if TYPE_CHECKING:
    from benchmarks.gpu_finetune import Kind

BETA = 0.1


def reset(sizes: Sizes) -> None:
    """What was there before counts no more."""
    gc.collect()
    torch._dynamo.reset()
    if sizes.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def memory(sizes: Sizes) -> dict[str, float]:
    """Peak of the device's memory since `reset`; a CPU's cannot be told apart."""
    if sizes.device.type != "cuda":
        return {}
    return {"memory_gb": round(torch.cuda.max_memory_allocated() / 2**30, 2)}


def model_of(sizes: Sizes, shape: ModelConfig, *, seed: int) -> Any:
    """LlamaForCausalLM with the weights that ours begins with."""
    from transformers import LlamaConfig, LlamaForCausalLM

    hf_config, weights = to_huggingface(build(shape, seed=seed))
    with sizes.device:
        model = LlamaForCausalLM(LlamaConfig(**hf_config | {"use_cache": False, "attn_implementation": "sdpa"}))
    model.load_state_dict(weights, strict=False)  # a tied head has no tensor of its own there
    return model.train()


class Loop:
    """The plain loop; the model is compiled on a GPU."""

    def __init__(self, sizes: Sizes, shape: ModelConfig, kind: Kind, inputs: Inputs) -> None:
        reset(sizes)
        self._sizes, self._kind, self._inputs = sizes, kind, inputs
        self._model = adapted(model_of(sizes, shape, seed=1)) if kind == "lora" else model_of(sizes, shape, seed=1)
        self._run, self._reference = self._made(self._model), None
        if kind == "dpo":
            self._reference = self._made(model_of(sizes, shape, seed=2).eval().requires_grad_(False))
        trained = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
        self._optimizer = torch.optim.AdamW(trained, lr=1e-5, weight_decay=0.0, fused=True)
        self._batches: list[Any] = inputs.micro
        if kind.startswith("dpo"):
            self._batches = padded(inputs.parts)
        self._known: list[Tensor] = []
        if kind == "dpo_cached":
            with torch.no_grad(), self._autocast():
                self._known = [self._answers(self._run, batch) for batch in self._batches]

    def _made(self, model: Any) -> Any:
        return torch.compile(model, dynamic=False) if self._sizes.device.type == "cuda" else model

    def _autocast(self) -> torch.autocast:
        kind = self._sizes.device.type
        return torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda")

    def first_loss(self) -> float:
        """Of the first batch, without a step."""
        with torch.no_grad():
            return float(self._loss(0))

    def run(self, warm: int, count: int) -> dict[str, float]:
        """Seconds of `count` steps behind `warm` others, and the peak memory."""
        begun = time.perf_counter()
        for step in range(warm):
            self._step(step)
        self._sizes.wait()
        warm_up, begun = time.perf_counter() - begun, time.perf_counter()
        for step in range(warm, warm + count):
            self._step(step)
        self._sizes.wait()
        return {"seconds": time.perf_counter() - begun, "warm_up_s": round(warm_up, 1)} | memory(self._sizes)

    def _step(self, step: int) -> None:
        self._loss(step).backward()
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def _loss(self, step: int) -> Tensor:
        batch, device = self._batches[step % len(self._batches)], self._sizes.device
        with self._autocast():
            if self._kind.startswith("dpo"):
                return self._dpo(step % len(self._batches))
            batch = batch.to(device, non_blocking=True)
            mask = DocumentMask.from_ids(batch.document_ids, kernel="sdpa").mask_B1TT
            logits = self._run(input_ids=batch.input_ids, position_ids=batch.position_ids, attention_mask=mask).logits
            return F.cross_entropy(logits.float().flatten(0, 1), batch.labels.flatten(), ignore_index=-100)

    def _dpo(self, number: int) -> Tensor:
        batch = self._batches[number]
        policy_Q = self._answers(self._run, batch)
        with torch.no_grad():
            reference_Q = self._known[number] if self._known else self._answers(self._reference, batch)
        ratio_Q = policy_Q - reference_Q
        return -F.logsigmoid(BETA * (ratio_Q[0::2] - ratio_Q[1::2])).mean()

    def _answers(self, model: Any, batch: Tensor) -> Tensor:
        """(Q,): log-probabilities of the answers."""
        ids_QT, trained_QT = batch.to(self._sizes.device, non_blocking=True)
        logp_QTV = F.log_softmax(model(input_ids=ids_QT).logits[:, :-1].float(), -1)
        return (logp_QTV.gather(-1, ids_QT[:, 1:, None])[..., 0] * trained_QT[:, 1:]).sum(-1)


def padded(parts: list[list[tuple[list[int], list[int]]]]) -> list[Tensor]:
    """(2, Q, T) of each batch: ids, and 1 where they are trained. Padding stands at the end, which nothing before it
    sees, up to the longest of all batches: the compiler has one shape."""
    longest, batches = max(len(prompt) + len(answer) for batch in parts for prompt, answer in batch), []
    for batch in parts:
        made = torch.zeros(2, len(batch), longest, dtype=torch.long)
        for number, (prompt, answer) in enumerate(batch):
            end = len(prompt) + len(answer)
            made[0, number, :end] = torch.tensor([*prompt, *answer])
            made[1, number, len(prompt) : end] = 1
        batches.append(made)
    return batches


def adapted(model: Any) -> Any:
    """With peft's adapter on every linear layer, as ours by default."""
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(r=32, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"))


# -- TRL


def trl(sizes: Sizes, shape: ModelConfig, kind: Kind, inputs: Inputs, warm: int, count: int) -> dict[str, Any]:
    """Its SFTTrainer on packed rows, or its DPOTrainer, on the same conversations; what its collator makes is
    counted."""
    from transformers import TrainerCallback

    reset(sizes)
    marks: list[float] = []
    counts: list[tuple[int, int]] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            sizes.wait()
            marks.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        trainer = (dpo_trainer if kind == "dpo" else sft_trainer)(sizes, shape, inputs, folder, warm + count)
        trainer.add_callback(Clock())
        trainer.data_collator = counting(trainer.data_collator, counts)
        trainer.train()
    seconds, taken = marks[warm + count - 1] - marks[warm - 1], counts[warm : warm + count]
    found = {"tokens_per_s": round(sum(present for present, _ in taken) / seconds)}
    found["trained_per_s"] = round(sum(trained for _, trained in taken) / seconds)
    if kind == "dpo":
        found["pairs_per_s"] = round(trainer.args.per_device_train_batch_size * count / seconds, 1)
    return found | memory(sizes)


def sft_trainer(sizes: Sizes, shape: ModelConfig, inputs: Inputs, folder: str, steps: int) -> Any:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    said = [words(part) for parts in inputs.parts for part in parts]
    rows = [{"prompt": prompt, "completion": answer} for prompt, answer in said] * -(-steps // len(inputs.parts))
    keys = trl_keys(sizes, folder, steps, sizes.micro[0] // sizes.row)
    config = SFTConfig(**keys, packing=True, max_length=sizes.row, completion_only_loss=True)
    model = model_of(sizes, shape, seed=1)
    return SFTTrainer(
        model=model, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer(shape.vocab)
    )


def dpo_trainer(sizes: Sizes, shape: ModelConfig, inputs: Inputs, folder: str, steps: int) -> Any:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    said = [words(part) for parts in inputs.parts for part in parts]
    sides = zip(said[0::2], said[1::2], strict=True)
    rows = [{"prompt": one[0], "chosen": one[1], "rejected": other[1]} for one, other in sides]
    pairs = len(rows) // len(inputs.parts)
    config = DPOConfig(**trl_keys(sizes, folder, steps, pairs), max_length=sizes.row, beta=BETA)
    models = {"model": model_of(sizes, shape, seed=1), "ref_model": model_of(sizes, shape, seed=2)}
    data = Dataset.from_list(rows * -(-steps // len(inputs.parts)))
    return DPOTrainer(**models, args=config, train_dataset=data, processing_class=tokenizer(shape.vocab))


def trl_keys(sizes: Sizes, folder: str, steps: int, size: int) -> dict[str, Any]:
    on_gpu = sizes.device.type == "cuda"
    own = dict(learning_rate=1e-5, use_cpu=not on_gpu, bf16=on_gpu, torch_compile=on_gpu)
    return trainer_keys(folder, steps, size) | own


def words(part: tuple[list[int], list[int]]) -> tuple[str, str]:
    """Prompt and answer as text: a number a token."""
    prompt, answer = (" ".join(map(str, ids)) for ids in part)
    return prompt, f" {answer}"


def tokenizer(vocab: int) -> Any:
    """That reads `words`; TRL takes text alone."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(
        WordLevel({**{str(id): id for id in range(3, vocab)}, "<pad>": 0, "<end>": 1, "<unk>": 2}, "<unk>")
    )
    made.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="<end>", unk_token="<unk>")
