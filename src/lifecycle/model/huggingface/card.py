"""The model card, README.md of an export: what the model is, what it was trained on, stage by stage, how to use it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lifecycle.model.config import ModelConfig

FRONT = """---
library_name: transformers
pipeline_tag: {task}
tags:
- lifecycle
---
"""

USE = """## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(FOLDER)
tokenizer = AutoTokenizer.from_pretrained(FOLDER)
{prompt}
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=64)[0], skip_special_tokens=True))
```
"""
SCORE_USE = """## Use

The score of an answer, at the token that ends it; a difference of two is the log-odds that the one is the better:

```python
from transformers import AutoModelForSequenceClassification, AutoTokenizer

model = AutoModelForSequenceClassification.from_pretrained(FOLDER)
tokenizer = AutoTokenizer.from_pretrained(FOLDER)
messages = [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}]
text = tokenizer.apply_chat_template(messages, tokenize=False).rstrip()  # up to the token that ends the answer
inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")
print(model(**inputs).logits[0, 0])
```
"""
PLAIN_PROMPT = 'inputs = tokenizer("Once upon a time", return_tensors="pt")'
CHAT_PROMPT = """messages = [{"role": "user", "content": "What is the capital of France?"}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)"""


def model_card(
    config: ModelConfig,
    hf_config: Mapping[str, Any],
    *,
    history: Sequence[Mapping[str, Any]],
    name: str,
    template: bool,
) -> str:
    """The text of README.md.

    hf_config: config.json; history: the `run.json` of each stage, first to last (of one that is gone: its `path`);
    template: whether the tokenizer has a chat template.
    """
    front = FRONT.format(task="text-classification" if config.score_head else "text-generation")
    use = SCORE_USE if config.score_head else USE.format(prompt=CHAT_PROMPT if template else PLAIN_PROMPT)
    parts = [front, f"# {name}\n", _sizes(config, hf_config), _stages(history)]
    parts += [_last(history, "pairs" if config.score_head else "text"), _remarks(config), use]
    return "\n".join(part for part in parts if part)


def _sizes(config: ModelConfig, hf_config: Mapping[str, Any]) -> str:
    total, active = config.parameters(), config.active_parameters()
    count = f"{total:,}" if total == active else f"{total:,}, of which {active:,} work on a token"
    rows = {
        "architecture": hf_config["architectures"][0],
        "parameters": count,
        "layers, width": f"{config.layers}, {config.width}",
        "heads": _heads(config),
        "experts": None if config.moe is None else f"{config.moe.experts}, {config.moe.active} a token",
        "longest sequence": f"{config.max_positions:,} tokens",
        "vocabulary": f"{config.vocab:,}",
        "weights": hf_config["dtype"],
    }
    return _table(("", ""), [(key, value) for key, value in rows.items() if value is not None])


def _heads(config: ModelConfig) -> str:
    if config.latent is not None:
        return f"{config.heads}, keys and values from {config.latent.kv_rank} latent dimensions"
    return f"{config.heads} for queries, {config.kv_heads} for keys and values, {config.head_dim} wide"


def _stages(history: Sequence[Mapping[str, Any]]) -> str:
    """One row for each stage and source."""
    rows = []
    for number, run in enumerate(history, start=1):
        sources = run.get("data", {}).get("sources", {})
        stage = run.get("stage") or f"`{_shown(str(run.get('path', 'unknown')))}`, of which no record is left here"
        used = [(name, *_used(source)) for name, source in sources.items()] or [("", "", "")]
        rows += [(f"{number}. {stage}", *row) for row in used]
    if not rows:
        return ""
    return "## Training\n\n" + _table(("stage", "source", "tokens", "epochs"), rows)


def _shown(path: str) -> str:
    """A hub id as it is; of a place on this machine the last part only, the rest says nothing elsewhere."""
    return path.rstrip("/").rpartition("/")[2] if path.startswith("/") else path


def _used(source: Any) -> tuple[str, str]:
    if not isinstance(source, Mapping):
        return "", ""
    tokens, epochs = source.get("tokens"), source.get("epochs")
    return "" if tokens is None else f"{tokens:,}", "" if epochs is None else f"{epochs:.3g}"


def _last(history: Sequence[Mapping[str, Any]], held_out: str) -> str:
    """Settings and result of the last stage. held_out: what its loss is of."""
    run = dict(history[-1]) if history else {}
    result = run.get("result") or {}
    facts = {
        "steps": f"{run['steps']:,}" if run.get("steps") is not None else None,
        "peak learning rate": run.get("peak_lr"),
        f"best loss on held-out {held_out}": f"{result['valid/loss']:.4f}" if "valid/loss" in result else None,
        "commit": (run.get("git") or {}).get("commit"),
        "data fingerprint": run.get("data", {}).get("fingerprint"),
    }
    lines = [f"- {key}: {value}" for key, value in facts.items() if value is not None]
    return "The last stage:\n\n" + "\n".join(lines) + "\n" if lines else ""


def _remarks(config: ModelConfig) -> str:
    if config.logit_softcap is None or config.score_head:
        return ""
    c = config.logit_softcap
    return (
        f"The logits were trained as {c} tanh(logits / {c}). This architecture of `transformers`, and of what is built "
        "like it (vLLM, llama.cpp), leaves that out: the most likely token is the same, but sampled ones are drawn "
        "from a sharper distribution, and log-probabilities and perplexities are others, until the cap is applied:\n\n"
        "```python\n"
        f"cap = [lambda ids, logits: {c} * (logits / {c}).tanh()]\n"
        "model.generate(**inputs, do_sample=True, logits_processor=cap)\n"
        "```\n"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines) + "\n"
