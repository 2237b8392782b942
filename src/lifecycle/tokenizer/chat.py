"""Which tokens end a completion: the end of a text, and the mark behind a turn of the assistant."""

from __future__ import annotations

from transformers import PreTrainedTokenizerFast

CONTENT = "\ue000"
"""Stands for what the assistant said: private use, so in no template."""


def end_ids(hf: PreTrainedTokenizerFast, eos_id: int) -> tuple[int, ...]:
    """`eos_id`, and the special token that the chat template, if there is one, puts behind a turn of the assistant."""
    if not hf.chat_template:
        return (eos_id,)
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": CONTENT}]
    try:
        behind = str(hf.apply_chat_template(turns, tokenize=False)).partition(CONTENT)[2]
    except Exception:  # a program from elsewhere; one that wants other turns than these tells nothing of its marks
        return (eos_id,)
    ids = hf(behind, add_special_tokens=False).input_ids[:1]
    marks = {index for index, token in hf.added_tokens_decoder.items() if token.special}
    return tuple(dict.fromkeys((eos_id, *(int(i) for i in ids if i in marks))))
