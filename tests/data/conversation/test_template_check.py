"""Laws of a run's chat template: it is the one that the tokenizer is saved with, and a run keeps its own."""

from pathlib import Path

import pytest

from lifecycle.data.conversation.template_check import open_template
from lifecycle.errors import UserError
from lifecycle.tokenizer.chat import ChatTemplate
from lifecycle.tokenizer.tokenizer import Tokenizer, load, train_bpe

TOKENIZER = train_bpe(["a question and an answer"] * 9, vocab_size=290, digits=1)


def bare() -> Tokenizer:
    """Without a template of its own."""
    other = TOKENIZER.with_template("x")
    other.hf.chat_template = None
    return other


def test_the_view_text_needs_no_template_and_changes_no_tokenizer() -> None:
    assert open_template("chatml", TOKENIZER, view="text", begun=False) == (TOKENIZER, None)
    assert open_template("none", TOKENIZER, view="prompt", begun=False) == (TOKENIZER, None)
    for view in ("chat", "preference", "unpaired"):
        with pytest.raises(UserError, match=f"data.chat_template=none, but the stage trains on the view '{view}'"):
            open_template("none", TOKENIZER, view=view, begun=False)


def test_a_tokenizer_has_the_template_that_the_run_was_taught_with(tmp_path: Path) -> None:
    same, own = open_template("auto", TOKENIZER, view="chat", begun=False)
    assert same is TOKENIZER and own is not None and own.source == TOKENIZER.hf.chat_template
    taught, plain = open_template("plain", TOKENIZER, view="chat", begun=False)
    assert plain is not None and taught.hf.chat_template == plain.source != TOKENIZER.hf.chat_template
    taught.save(tmp_path)
    again, kept = open_template("auto", load(str(tmp_path)), view="chat", begun=True)
    assert kept is not None and kept.sha256 == plain.sha256 and again.end_ids == (TOKENIZER.eos_id,)
    with pytest.raises(UserError, match="another way than the run began with"):
        open_template("chatml", load(str(tmp_path)), view="chat", begun=True)


def test_a_tokenizer_without_a_template_gets_chatml_or_is_told_what_it_lacks() -> None:
    marked = train_bpe(["a"] * 9, vocab_size=290, digits=1, special_tokens=["<|im_start|>", "<|im_end|>"])
    marked.hf.chat_template = None
    taught, template = open_template("auto", marked, view="chat", begun=False)
    assert template is not None and template.name == "ChatML" and len(taught.end_ids) == 2
    with pytest.raises(UserError, match=r"ChatML is of no use for training: no stop token .*<\|eos\|>"):
        open_template("auto", bare(), view="chat", begun=False)
    assert open_template("plain", bare(), view="chat", begun=False)[1] is not None


def test_a_file_that_is_no_template_is_refused_with_the_line(tmp_path: Path) -> None:
    (tmp_path / "mine.jinja").write_text("{% for turn in messages %}\n{{ turn.content }\n{% endfor %}")
    with pytest.raises(UserError, match="no use for training: an error: line 2: unexpected '}'. Choose data"):
        open_template(str(tmp_path / "mine.jinja"), TOKENIZER, view="chat", begun=False)


def test_a_file_is_read_and_a_missing_one_is_named(tmp_path: Path) -> None:
    chatml = ChatTemplate.of("plain", TOKENIZER.hf)
    assert chatml is not None
    (tmp_path / "mine.jinja").write_text(chatml.source)
    _, template = open_template(str(tmp_path / "mine.jinja"), TOKENIZER, view="chat", begun=False)
    assert template is not None and template.sha256 == chatml.sha256 and "mine.jinja" in template.name
    with pytest.raises(UserError, match="data.chat_template is 'chatlm', and there is no such file; wanted auto"):
        open_template("chatlm", TOKENIZER, view="chat", begun=False)
