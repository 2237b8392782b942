"""Prompts of a generation: read from the command line, a file or standard input, and turned into token ids.

A text file holds a prompt a line; JSON Lines (.jsonl, .ndjson, .json, in any case) hold {"prompt": "..."} or
{"messages": [{"role": ..., "content": ...}]} a line, with an optional "id". A .json file may hold one list of such
objects. Standard input is read as JSON Lines if it begins with "{", else as text.

A prompt becomes ids in one of two forms: as a turn of the user, by the tokenizer's chat template, or as the beginning
of a document. Names of special tokens in what the user wrote are text in both forms: writing "<|im_end|>" ends no turn.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lifecycle.errors import UserError
from lifecycle.model.huggingface.export_folder import TokenizerFiles
from lifecycle.system.unicode import well_formed

LINE_FORM = 'a text file has a prompt a line, a .jsonl file {"prompt": "..."} or {"messages": [...]} a line'
JSON_LINES = (".jsonl", ".ndjson", ".json")


class ChatTokenizer(TokenizerFiles, Protocol):
    """The members of a tokenizer that turning prompts into ids needs."""

    @property
    def hf(self) -> Any: ...
    @property
    def vocab_size(self) -> int: ...

    def encode_batch(self, texts: Sequence[str]) -> Sequence[Any]:
        """Ids of each text, without marks; names of special tokens in it are text."""
        ...

    def decode(self, ids: Sequence[int], *, specials: bool = False) -> str:
        """The text of ids, without special tokens."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class UserPrompt:
    """One prompt as a user gives it: a text, or the messages of a conversation (then `text` is None)."""

    id: str
    text: str | None
    messages: tuple[Mapping[str, str], ...] = ()

    @property
    def opening(self) -> str:
        """What is displayed of it: the text, or the last message."""
        return self.messages[-1]["content"] if self.text is None else self.text


def read_prompts(prompt: str | Sequence[str] | None, file: str | None) -> list[UserPrompt]:
    """The prompts of `stage.prompt` or of `stage.file` ("-": standard input).

    Raises UserError where both or neither are given, where there are none, and for a line that cannot be read.
    """
    if (prompt is None) == (file is None):
        given = "both" if prompt is not None else "neither"
        raise UserError(
            f"stage.prompt and stage.file: {given} given, wanted one of them: type stage.prompt='Return the', "
            "stage.file=prompts.jsonl, or stage.file=- for standard input"
        )
    if prompt is not None:
        texts = [prompt] if isinstance(prompt, str) else list(prompt)
        found = [UserPrompt(id=str(number), text=well_formed(text)) for number, text in enumerate(texts)]
    else:
        assert file is not None
        found = _of_lines(file)
    if not found:
        raise UserError(f"stage.{'prompt' if file is None else f'file={file}'} holds no prompt; {LINE_FORM}")
    return found


def _of_lines(file: str) -> list[UserPrompt]:
    place = "standard input" if file == "-" else file
    try:
        content = sys.stdin.read() if file == "-" else Path(file).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:  # absent, a folder, not text
        raise UserError(f"stage.file={file} cannot be read: {error}; {LINE_FORM}") from error
    json_lines = content.lstrip().startswith("{") if file == "-" else file.lower().endswith(JSON_LINES)
    if file.lower().endswith(".json") and content.lstrip().startswith("["):
        return [_of_row(row, f"{place}, object {n}", str(n)) for n, row in enumerate(_parsed(content, place), 1)]
    # split by line feeds alone: other line separators may stand inside a prompt
    lines = [(number, line.rstrip("\r")) for number, line in enumerate(content.split("\n"), 1) if line.strip()]
    if json_lines:
        places = {number: f"{place}, line {number}" for number, _ in lines}
        return [_of_row(_parsed(line, places[number]), places[number], str(number)) for number, line in lines]
    return [UserPrompt(id=str(number), text=well_formed(line)) for number, line in lines]


def _parsed(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{place}: not JSON ({error}); {LINE_FORM}") from error


def _of_row(row: Any, place: str, number: str) -> UserPrompt:
    if not isinstance(row, dict):
        raise UserError(f"{place}: a {type(row).__name__}, wanted an object; {LINE_FORM}")
    name, text = well_formed(str(row.get("id", number))), row.get("prompt", row.get("text"))
    messages = row.get("messages")
    if isinstance(text, str) and messages is None:
        return UserPrompt(id=name, text=well_formed(text))
    if text is None and _are_messages(messages):
        assert messages is not None
        turns = tuple({**m, **{key: well_formed(m[key]) for key in ("role", "content")}} for m in messages)
        return UserPrompt(id=name, text=None, messages=turns)
    raise UserError(f"{place}: wanted either prompt, a text, or messages, a list of role and content; {LINE_FORM}")


def _are_messages(messages: Any) -> bool:
    return (
        isinstance(messages, list)
        and bool(messages)
        and all(
            isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str)
            for m in messages
        )
    )


def encode(
    prompts: Sequence[UserPrompt], tokenizer: ChatTokenizer, *, chat: bool, system: str | None, begin: bool
) -> list[list[int]]:
    """Ids of every prompt.

    chat: a text is a turn of the user, after `system` if given. begin: a plain text follows the mark that documents
    began with in training; else what the tokenizer itself puts before a text. Messages always go by the template.
    Raises UserError for a conversation and a tokenizer without a chat template.
    """
    plain = [prompt.text for prompt in prompts if prompt.text is not None and not chat]
    encoded = iter(tokenizer.encode_batch(plain))
    before = [tokenizer.bos_id] if begin else _own_marks(tokenizer)
    return [
        [*before, *(int(i) for i in next(encoded))]
        if prompt.text is not None and not chat
        else _conversation(prompt, tokenizer, system)
        for prompt in prompts
    ]


def _own_marks(tokenizer: ChatTokenizer) -> list[int]:
    """What the tokenizer puts before a text by itself: nothing, or its bos."""
    ids = list(tokenizer.hf("a").input_ids)
    return ids[:1] if ids and ids[0] == tokenizer.hf.bos_token_id else []


def _conversation(prompt: UserPrompt, tokenizer: ChatTokenizer, system: str | None) -> list[int]:
    if not tokenizer.hf.chat_template:
        raise UserError(
            f"prompt {prompt.id} is to be a conversation, but the model's tokenizer has no chat template: give plain "
            "prompts and stage.chat=false"
        )
    messages: list[Mapping[str, str]] = list(prompt.messages) or [{"role": "user", "content": prompt.text or ""}]
    if system is not None and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": system}, *messages]
    return _ids_of_turns(messages, tokenizer, prompt.id)


def _rendered(turns: Sequence[Mapping[str, str]], tokenizer: ChatTokenizer, prompt: str) -> str:
    """The text of turns by the model's chat template."""
    try:
        return str(tokenizer.hf.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=True))
    except Exception as error:  # a template is untrusted code, and may raise anything
        roles = [turn["role"] for turn in turns]
        mend = "leave out the system turn (stage.system=null)" if "system" in roles else "give turns that it takes"
        raise UserError(
            f"prompt {prompt}: the model's chat template refuses these turns ({', '.join(roles)}): "
            f"{' '.join(str(error).split()) or type(error).__name__}; {mend}, or plain prompts and stage.chat=false"
        ) from error


def _ids_of_turns(messages: Sequence[Mapping[str, str]], tokenizer: ChatTokenizer, prompt: str) -> list[int]:
    """The rendered template as ids; where contents name special tokens, these are encoded apart, as text."""

    def render(turns: Sequence[Mapping[str, str]]) -> str:
        return _rendered(turns, tokenizer, prompt)

    def ids_of(text: str) -> list[int]:
        return [int(i) for i in tokenizer.hf(text, add_special_tokens=False).input_ids]

    whole, contents = render(messages), [message["content"] for message in messages]
    special = [str(token) for token in tokenizer.hf.added_tokens_decoder.values() if token.special]
    named = [name for name in special if any(name in content for content in contents)]
    if not named:
        return ids_of(whole)  # not piece by piece: a token may reach over the border of a content
    holders = [f"\ue000{number}\ue001" for number in range(len(messages))]  # private use: in no template
    frame = render([{**message, "content": holder} for message, holder in zip(messages, holders, strict=True)])
    ids: list[int] = []
    filled = joined = ""  # joined: what is encoded together, as in training: up to a content that names such a token
    for holder, content in zip(holders, contents, strict=True):
        before, _, frame = frame.partition(holder)
        filled, joined = filled + before + content, joined + before
        if any(name in content for name in named):
            ids += [*ids_of(joined), *(int(i) for i in tokenizer.encode_batch([content])[0])]
            joined = ""
        else:
            joined += content
    if filled + frame != whole:  # the template trims or moves contents: they cannot be told from its own marks
        raise UserError(
            f"a message holds {', '.join(named)}, which the model's chat template would take for its own mark: "
            "take it out of the message"
        )
    return [*ids, *ids_of(joined + frame)]
