"""A teacher is found as a parent is, and has the tokenizer of its student; what does not fit is refused in words."""

from pathlib import Path

import pytest
from omegaconf import DictConfig
from tests.model.huggingface.families import LLAMA, made

from lifecycle import config
from lifecycle.errors import UserError
from lifecycle.lineage.inherit import settled
from lifecycle.lineage.teacher import check_tokenizer, teacher_of
from lifecycle.model.huggingface import export
from lifecycle.runs.plan import make_plan
from lifecycle.tokenizer.extend import extend
from lifecycle.tokenizer.tokenizer import Tokenizer, train_bpe

FEW = LLAMA.max_positions
TEXTS = ["the cat sat on a mat and then it ran far away", "from that old grey house near some river bank"] * 4


def tokenizer(size: int = 300, texts: list[str] = TEXTS) -> Tokenizer:
    return train_bpe(texts, vocab_size=size, digits=1, special_tokens=[])


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With the model `large` and its tokenizer."""
    monkeypatch.chdir(tmp_path)
    export(made(LLAMA), Path("large"))
    tokenizer().save(Path("large"))
    return tmp_path


def composed(*words: str) -> DictConfig:
    return config.compose(
        ["stage=distill", "data=files", "data.sources.mine.path=x.jsonl", f"stage.sequence_length={FEW}", *words]
    )


def test_a_fresh_student_gets_the_tokenizer_of_its_teacher_unless_the_command_names_one() -> None:
    plain, named = composed("stage.teacher=large"), composed("stage.teacher=large", "data.tokenizer=gpt2")
    assert settled(plain, None, teacher_of(plain)).data.tokenizer == str(Path("large").resolve())
    assert settled(named, None, teacher_of(named)).data.tokenizer == "gpt2"
    other = config.compose(["stage=pretrain"])
    assert teacher_of(other) is None and settled(other, None) == other


def test_a_teacher_that_is_not_there_is_refused_by_its_key() -> None:
    with pytest.raises(UserError, match="stage.teacher=nobody is neither a run"):
        make_plan(composed("stage.teacher=nobody"))
    with pytest.raises(UserError, match="stage.teacher is null: type stage.teacher=RUN"):
        make_plan(composed())


def test_a_teacher_without_a_tokenizer_or_with_too_few_positions_is_refused() -> None:
    with pytest.raises(UserError, match=f"the teacher .*large has {FEW} positions: type stage.sequence_length={FEW}"):
        teacher_of(composed("stage.teacher=large", f"stage.sequence_length={2 * FEW}"))
    export(made(LLAMA), Path("bare"))
    with pytest.raises(UserError, match="stage.teacher=bare has no tokenizer"):
        teacher_of(composed("stage.teacher=bare"))


def test_tokenizers_are_the_same_where_ids_and_rules_are() -> None:
    teacher = teacher_of(composed("stage.teacher=large"))
    assert teacher is not None
    check_tokenizer(teacher, tokenizer())
    check_tokenizer(teacher, tokenizer().with_template("{{ messages }}"))
    with pytest.raises(UserError, match=r"different tokenizers: id \d+ is .* to the student, and .* to the teacher"):
        check_tokenizer(teacher, tokenizer(texts=["other words make other tokens, as they must"] * 4))
    with pytest.raises(UserError, match="the same ids, but text is cut into them by other rules"):
        check_tokenizer(teacher, tokenizer(290))
    with pytest.raises(UserError, match="'<think>' to the student, and nothing to the teacher"):
        check_tokenizer(teacher, extend(tokenizer(), new_tokens=["<think>"], split_digits=False))
    extend(tokenizer(), new_tokens=["<think>"], split_digits=False).save(Path("large"))
    check_tokenizer(teacher, tokenizer())  # one more token of the teacher does no harm
