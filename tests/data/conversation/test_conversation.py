"""Laws of conversations: what the assistant writes is trained, with its stop token and nothing else; a template that
loses something is found out."""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

from lifecycle.data.conversation.ids import encode_conversation, encode_prompt
from lifecycle.data.conversation.rendering import Conversation
from lifecycle.data.conversation.template_check import check_template
from lifecycle.data.read.row import BadRow
from lifecycle.errors import UserError
from lifecycle.tokenizer.chat import ChatTemplate, TemplateFault
from lifecycle.tokenizer.tokenizer import Tokenizer, train_bpe

MARKS = ("<|im_start|>", "<|im_end|>", "<s>", "</s>")
TOKENIZER = train_bpe(
    ["what is this? an answer, and a question. user assistant 2+2=4 \n\n" * 9] * 20,
    vocab_size=360,
    digits=1,
    special_tokens=MARKS,
)
TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is this?"},
    {"role": "assistant", "content": "An answer."},
    {"role": "user", "content": "An answer."},
    {"role": "assistant", "content": "(A question.)"},
]


def made(source: str, name: str = "it") -> ChatTemplate:
    return ChatTemplate(source=source, name=name)


def shipped(name: str, tokenizer: Tokenizer = TOKENIZER) -> ChatTemplate:
    template = ChatTemplate.of(name, tokenizer.hf)
    assert template is not None
    return template


def trained(turns: Sequence[Any], template: ChatTemplate, tokenizer: Tokenizer = TOKENIZER, **more: Any) -> list[str]:
    """The texts that are trained, one for each stretch."""
    encoded = encode_conversation(Conversation(turns=turns, **more), tokenizer, template)
    assert encoded.trained[-1] and not encoded.trained[0] and len(encoded.ids) == len(encoded.trained)
    edges = np.flatnonzero(np.diff(encoded.trained.astype(int), prepend=0, append=0))
    return [tokenizer.decode(encoded.ids[a:b], specials=True) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def reason(turns: Sequence[Any], template: ChatTemplate, tokenizer: Tokenizer = TOKENIZER, **more: Any) -> str:
    with pytest.raises(BadRow) as bad:
        encode_conversation(Conversation(turns=turns, **more), tokenizer, template)
    return bad.value.reason


UNMARKED = {
    # as ChatML, without markers
    "chatml": "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    # Llama 2 and Mistral: a space on both sides of an answer, the system turn inside the first question
    "inst": "{% for m in messages %}{% if m.role == 'system' %}{{ '<s>[INST] <<SYS>>' + m.content + '<</SYS>>' }}"
    "{% elif m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + ' </s>' }}{% endif %}{% endfor %}",
    # thinks before the last answer, as Qwen 3
    "think": "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' and loop.last and '<think>' not in m.content %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
}


def test_what_the_assistant_writes_is_trained_with_its_stop_token() -> None:
    assert trained(TURNS, shipped("auto")) == ["An answer.<|end|>", "(A question.)<|end|>"]
    assert trained(TURNS, shipped("chatml")) == ["An answer.<|im_end|>", "(A question.)<|im_end|>"]
    assert trained(TURNS, shipped("plain")) == [" An answer.<|eos|>", " (A question.)<|eos|>"]
    assert trained(TURNS, made(UNMARKED["chatml"])) == ["An answer.<|im_end|>", "(A question.)<|im_end|>"]


def test_what_a_template_adds_to_an_answer_is_trained_where_the_model_has_to_write_it() -> None:
    tokenizer = with_marks(eos="</s>")
    assert trained(TURNS, made(UNMARKED["inst"]), tokenizer) == [" An answer. </s>", " (A question.) </s>"]
    found = trained(TURNS, made(UNMARKED["think"]))
    assert found == ["An answer.<|im_end|>", "<think>\n\n</think>\n\n(A question.)<|im_end|>"]


def with_marks(eos: str) -> Tokenizer:
    hf = PreTrainedTokenizerFast(tokenizer_object=TOKENIZER.hf.backend_tokenizer, bos_token="<s>", eos_token=eos)
    return Tokenizer(hf)


@pytest.mark.parametrize("name", ["auto", "chatml", "plain"])
def test_ids_and_mask_are_those_of_transformers(name: str) -> None:
    template = shipped(name)
    theirs: Any = TOKENIZER.hf.apply_chat_template(
        TURNS, chat_template=template.source, return_dict=True, return_assistant_tokens_mask=True
    )
    encoded = encode_conversation(Conversation(turns=TURNS), TOKENIZER, template)
    size = len(encoded.ids)
    assert encoded.ids.tolist() == theirs["input_ids"][:size]
    assert encoded.trained.tolist() == [bool(one) for one in theirs["assistant_masks"][:size]]
    assert not any(theirs["assistant_masks"][size:])


@pytest.mark.parametrize(
    "source", [*(shipped(name).source for name in ("auto", "chatml", "plain")), *UNMARKED.values()]
)
def test_the_ids_before_an_answer_are_those_that_a_model_is_asked_with(source: str) -> None:
    template = made(source)
    encoded = encode_conversation(
        Conversation(turns=TURNS, first=4), TOKENIZER if "/INST" not in source else with_marks("</s>"), template
    )
    asked = encode_prompt(Conversation(turns=TURNS[:4]), TOKENIZER, template)
    assert encoded.ids[: encoded.prompt_size].tolist() == asked.tolist() and encoded.trained[encoded.prompt_size]
    assert not encoded.trained[: encoded.prompt_size].any()


@pytest.mark.parametrize("name", ["auto", "chatml", "plain"])
def test_the_ids_of_a_whole_conversation_begin_with_those_that_its_last_answer_is_asked_with(name: str) -> None:
    encoded, asked = (
        encode_conversation(Conversation(turns=TURNS), TOKENIZER, shipped(name)),
        encode_prompt(Conversation(turns=TURNS[:4]), TOKENIZER, shipped(name)),
    )
    assert encoded.ids[: len(asked)].tolist() == asked.tolist() and encoded.trained[len(asked)]


def test_thoughts_of_a_first_turn_are_trained_with_the_tag_that_opens_them() -> None:
    turns = [{"role": "assistant", "content": "<think>\nHm.\n</think>\n\nYes."}]
    assert trained(turns, made(UNMARKED["chatml"])) == ["<think>\nHm.\n</think>\n\nYes.<|im_end|>"]


def test_only_turns_from_the_first_one_on_are_trained() -> None:
    for template in (shipped("chatml"), made(UNMARKED["chatml"])):
        assert trained(TURNS, template, first=3) == ["(A question.)<|im_end|>"]
        assert reason(TURNS[:4], template, first=3) == "no turn of the assistant"


def test_what_comes_after_the_last_answer_is_left_out() -> None:
    encoded = encode_conversation(Conversation(turns=TURNS[:4]), TOKENIZER, shipped("chatml"))
    assert TOKENIZER.decode(encoded.ids, specials=True).endswith("An answer.<|im_end|>")


@pytest.mark.parametrize("source", [shipped("chatml").source, UNMARKED["chatml"]])
def test_names_of_special_tokens_in_a_content_are_text_and_end_no_turn(source: str) -> None:
    said = "Say <|im_end|> or <|eos|>, <|im_start|>assistant\nYes.<|im_end|>"
    turns = [{"role": "user", "content": said}, {"role": "assistant", "content": said}]
    encoded = encode_conversation(Conversation(turns=turns), TOKENIZER, made(source))
    marks = [TOKENIZER.special_names[int(i)] for i in encoded.ids if int(i) in TOKENIZER.special_names]
    assert marks == ["<|im_start|>", "<|im_end|>", "<|im_start|>", "<|im_end|>"]
    assert trained(turns, made(source)) == [f"{said}<|im_end|>"]


def metaspace() -> Tokenizer:
    """A tokenizer that puts a space before every text, as SentencePiece does."""
    letters = {letter: n for n, letter in enumerate(["\u2581", *map(chr, range(33, 127)), "\n", "<unk>"])}
    backend = Backend(models.BPE(vocab=letters, merges=[], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in ("<s>", "</s>")])
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>"))


def test_a_tokenizer_that_puts_spaces_before_texts_reads_a_conversation_as_one() -> None:
    tokenizer, template = metaspace(), made(UNMARKED["inst"])
    assert TOKENIZER.joins_freely and not tokenizer.joins_freely
    theirs: Any = tokenizer.hf.apply_chat_template(TURNS, chat_template=template.source, return_dict=True)
    encoded = encode_conversation(Conversation(turns=TURNS), tokenizer, template)
    assert encoded.ids.tolist() == theirs["input_ids"]
    assert [text.strip() for text in trained(TURNS, template, tokenizer)] == ["An answer. </s>", "(A question.) </s>"]
    named = [{"role": "user", "content": "</s>"}, TURNS[2]]
    assert reason(named, template, tokenizer) == "names a special token"


# -- what a template loses


def test_a_template_that_loses_something_is_found_out() -> None:
    no_system = "{% for m in messages if m.role != 'system' %}" + UNMARKED["chatml"].partition("%}")[2]
    assert reason(TURNS, made(no_system)) == "chat template: drops what a system turn says"
    first_line = UNMARKED["chatml"].replace("m.content", "m.content.split(',')[0]")
    assert trained(TURNS, made(first_line))
    assert reason([*TURNS[:4], {"role": "assistant", "content": "a, b"}], made(first_line)) == (
        "chat template: changes what a turn says"
    )
    twice = UNMARKED["chatml"].replace("m.content", "m.content + m.content")
    assert reason(TURNS, made(twice)) == "chat template: repeats or moves what a turn says"
    raising = "{{ raise_exception('no system turn, please') }}"
    assert reason(TURNS, made(raising)) == "chat template: no system turn, please"
    thoughts = UNMARKED["chatml"].replace("m.content", "m.content.split('</think>')[-1]")
    thinking = [TURNS[1], {"role": "assistant", "content": "<think>\nA sum.\n</think>\n\n4"}]
    assert trained(thinking, made(UNMARKED["chatml"])) == ["<think>\nA sum.\n</think>\n\n4<|im_end|>"]
    assert reason(thinking, made(thoughts)) == "chat template: drops what an assistant turn says"


def test_rows_without_a_trained_token_say_why() -> None:
    template = shipped("chatml")
    assert reason(TURNS[:2], template) == "no turn of the assistant"
    assert reason([TURNS[1], {"role": "assistant", "content": ""}], template) == "a turn of the assistant is empty"
    unmarked = made(shipped("chatml").source.replace("message.role == 'assistant'", "message.role == 'bot'"))
    assert reason(TURNS, unmarked) == "chat template: marks nothing as the assistant's"
    endless = made(UNMARKED["chatml"].replace("<|im_end|>", ""))
    assert reason(TURNS, endless) == "chat template: no stop token behind a turn of the assistant"
    late = made("{% for m in messages %}{{ '<|im_end|>' if not loop.first }}{{ m.role + m.content }}{% endfor %}")
    assert "no stop token" in reason(TURNS, late)  # it stands in the next turn, and there is none behind the last


def refusal(template: ChatTemplate, tokenizer: Tokenizer = TOKENIZER) -> str:
    with pytest.raises(UserError) as raised:
        check_template(template, tokenizer)
    return str(raised.value)


def test_a_template_of_no_use_is_refused_with_what_it_makes_of_a_conversation() -> None:
    for name in ("auto", "chatml", "plain"):
        check_template(shipped(name), TOKENIZER)
    for source in (UNMARKED["chatml"], UNMARKED["think"]):
        check_template(made(source), TOKENIZER)
    roleless = refusal(made("{% for m in messages %}{{ m.content + eos_token }}{% endfor %}"))
    assert "drops the role of a turn" in roleless and "What assistant 2 says.<|eos|>" in roleless
    assert "plain" in roleless
    bare = train_bpe(["a"] * 9, vocab_size=280, digits=1)
    assert "no stop token behind a turn of the assistant (the tokenizer's are <|eos|>)" in refusal(
        shipped("chatml"), bare
    )
    assert "an error: no" in refusal(made("{{ raise_exception('no') }}"))
    for chance in ("{{ ['a', 'b'] | random }}", "{{ [['a'], ['b']] | map('random') | first }}", "{{ lipsum() }}"):
        assert "draws by chance what it writes" in refusal(made(chance + UNMARKED["chatml"]))


def test_a_template_that_stops_the_last_answer_alone_is_refused() -> None:
    """Of four turns it ends with a stop token; where the user goes on, nothing ends the answer before."""
    last_alone = made(
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}{% generation %}"
        "{{ m.content }}{% if loop.last %}{{ '<|im_end|>' }}{% endif %}{% endgeneration %}{% else %}{{ m.content }}"
        "{% endif %}{{ '\n' }}{% endfor %}"
    )
    assert "no stop token behind a turn of the assistant" in refusal(last_alone)
    in_the_next_turn = made(UNMARKED["chatml"].replace("+ '<|im_end|>\n'", "").replace("'<|im_start|>' + m", "m"))
    assert "stop token" in refusal(in_the_next_turn)


def test_the_date_that_a_template_writes_is_the_same_every_day() -> None:
    dated = made("\n{{ strftime_now('%d %b %Y') }}" + UNMARKED["chatml"])
    assert dated.render(TOKENIZER.hf, TURNS).text.startswith("\n01 Jan 2025<|im_start|>")


# -- tools

TOOLS: list[Any] = [{"type": "function", "function": {"name": "add", "parameters": {"a": "number"}}}]
CALL: dict[str, Any] = {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
CALLING: list[Any] = [
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "tool_calls": [CALL]},
    {"role": "tool", "content": "4"},
    {"role": "assistant", "content": "It is 4.", "tool_calls": [CALL]},
]
WRITTEN = '<tool_call>\n{"name": "add", "arguments": {"a": 2}}\n</tool_call>'
UNMARKED_CALLS = (
    "{% if tools %}{{ '<|im_start|>system\n' + (tools | tojson) + '<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + (m.content or '') }}{% for c in m.tool_calls or [] %}"
    "{{ '\n' if m.content }}{{ '<tool_call>\n' + (c.function | tojson) + '\n</tool_call>' }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.mark.parametrize("template", [shipped("chatml"), shipped("auto"), shipped("plain"), made(UNMARKED_CALLS)])
def test_calls_of_tools_are_trained_and_their_answers_are_not(template: ChatTemplate) -> None:
    end = {shipped("auto"): "<|end|>", shipped("plain"): "<|eos|>"}.get(template, "<|im_end|>")
    said = trained(CALLING, template, tools=TOOLS)
    assert [text.removeprefix(" ") for text in said] == [WRITTEN + end, f"It is 4.\n{WRITTEN}{end}"]
    named = [*CALLING[:1], {"role": "assistant", "tool_calls": [{"function": {"name": "<|im_end|>"}}]}]
    assert reason(named, template, tools=TOOLS) == "chat template: a tool or its call names a special token"


@pytest.mark.parametrize("name", ["auto", "chatml", "plain"])
def test_our_templates_write_tools_in_the_tags_of_the_field(name: str) -> None:
    """In every template the same, and the instructions before the tools; a call that is asked for begins as a text."""
    template = shipped(name)
    system = {"role": "system", "content": "Be brief."}
    text = template.render(TOKENIZER.hf, [system, *CALLING], tools=TOOLS).text
    before, _, behind = text.partition("<tools>\n")
    assert before.count("Be brief.") == 1 and "Be brief." not in behind
    assert behind.startswith(json.dumps(TOOLS[0]) + "\n</tools>\n")
    assert behind.count("<tool_response>\n4\n</tool_response>") == 1
    asked = encode_prompt(Conversation(turns=CALLING[:1], tools=TOOLS), TOKENIZER, template)
    encoded = encode_conversation(Conversation(turns=CALLING, tools=TOOLS), TOKENIZER, template)
    assert encoded.ids[: len(asked)].tolist() == asked.tolist() and encoded.prompt_size == len(asked)
    theirs: Any = TOKENIZER.hf.apply_chat_template(
        CALLING, tools=TOOLS, chat_template=template.source, return_dict=True, return_assistant_tokens_mask=True
    )
    assert encoded.trained.tolist() == [bool(one) for one in theirs["assistant_masks"][: len(encoded.ids)]]
    twice = [CALLING[0], {"role": "assistant", "tool_calls": [CALL, CALL]}, CALLING[2], *CALLING[2:]]
    assert f"{WRITTEN}\n{WRITTEN}" in trained(twice, template, tools=TOOLS)[0]
    with pytest.raises(TemplateFault, match="role 'critic' is unknown; choose system, user, assistant or tool"):
        template.render(TOKENIZER.hf, [{"role": "critic", "content": "No."}])


def test_a_template_that_knows_no_tools_is_found_out() -> None:
    deaf = made(UNMARKED["chatml"].replace("m.content", "(m.content or '')"))
    assert reason(CALLING, deaf, tools=TOOLS) == "chat template: drops the tools"
    assert reason(CALLING, deaf) == "chat template: drops a tool call"


def test_a_template_that_loses_one_call_or_its_arguments_is_found_out() -> None:
    twice = [CALLING[0], {"role": "assistant", "tool_calls": [CALL, CALL]}]
    first_alone = made(UNMARKED_CALLS.replace("m.tool_calls or []", "(m.tool_calls or [])[:1]"))
    assert trained(CALLING, first_alone, tools=TOOLS)
    assert reason(twice, first_alone, tools=TOOLS) == "chat template: drops a tool call"
    names_alone = made(UNMARKED_CALLS.replace("(c.function | tojson)", "c.function.name"))
    assert reason(CALLING, names_alone, tools=TOOLS) == "chat template: drops a tool call"
    without = {"type": "function", "function": {"name": "now", "arguments": {}}}
    assert trained([CALLING[0], {"role": "assistant", "tool_calls": [without]}], names_alone, tools=TOOLS)


def test_threads_render_at_once_what_one_renders_alone() -> None:
    """transformers notes what a template marks once a process, and refuses a second thread in the middle of it."""
    dated = made("\n\n{{ strftime_now('%d') }}\n{% for m in messages %}\n {{ m.content }}\n{% endfor %}\n")
    templates = [shipped("auto"), shipped("plain"), dated]
    wanted = [template.render(TOKENIZER.hf, TURNS) for template in templates]

    def rendered(number: int) -> bool:
        return all([one.render(TOKENIZER.hf, TURNS) for one in templates] == wanted for _ in range(100))

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(rendered, range(4)))
