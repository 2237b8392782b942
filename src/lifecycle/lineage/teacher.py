"""The teacher of a run that distils: any model that `init_from` could name, and one tokenizer for it and the student.

    stage.teacher=RUN, RUN@STEP, FOLDER, OWNER/NAME

A fresh student (`model=...`) gets the tokenizer of its teacher; one with a parent keeps the parent's, in which every
token must be the teacher's of the same id.
"""

from __future__ import annotations

import json
from typing import Any

from omegaconf import DictConfig

from lifecycle import config
from lifecycle.errors import UserError
from lifecycle.lineage.parent import Parent, find_parent, finished_runs
from lifecycle.stages.run.inheritance import TeacherName
from lifecycle.tokenizer.tokenizer import Tokenizer, load


def teacher_of(cfg: DictConfig) -> Parent | None:
    """The model that `stage.teacher` names; None for a stage without a teacher. Raises UserError where there is no such
    model, or it has no tokenizer, or too few positions for the rows of the run."""
    named = config.part(cfg.stage, TeacherName)
    if named is None:
        return None
    if named.teacher is None:
        raise UserError(
            "this stage learns from a trained model, and stage.teacher is null: type stage.teacher=RUN, or a Hugging "
            f"Face folder or hub id; {finished_runs()}"
        )
    found = find_parent(named.teacher, key="stage.teacher")
    if found.model.score_head:
        raise UserError(
            f"stage.teacher={named.teacher} ends in a score, as a reward model does, and predicts no token: name the "
            "model that it was made from, or another"
        )
    if found.tokenizer is None:
        raise UserError(
            f"stage.teacher={named.teacher} has no tokenizer, and whether its ids mean what the student's mean "
            "cannot be told: put its tokenizer.json and tokenizer_config.json there"
        )
    length = config.build_limits(cfg.stage).sequence_length
    if length > found.model.max_positions:
        raise UserError(
            f"stage.sequence_length is {length}, and the teacher {found.name} has {found.model.max_positions} "
            f"positions: type stage.sequence_length={found.model.max_positions}, or choose another teacher"
        )
    return found


def check_tokenizer(teacher: Parent, tokenizer: Tokenizer) -> None:
    """Raise UserError where the student's tokenizer cuts text in another way than the teacher's, or an id of it means
    something else to the teacher, or nothing."""
    assert teacher.tokenizer is not None
    theirs = load(teacher.tokenizer)
    fault = _another_token(tokenizer, theirs)
    if fault is None and _cutting(tokenizer) != _cutting(theirs):
        fault = "the same ids, but text is cut into them by other rules"
    if fault is not None:
        raise UserError(
            f"the student and its teacher {teacher.name} have different tokenizers: {fault}. Distillation compares "
            "them token by token: choose a teacher and a student of one tokenizer, or begin with a fresh student "
            f"(model=..., neither init_from nor data.tokenizer), which gets the teacher's ({teacher.tokenizer})"
        )


def _another_token(student: Tokenizer, teacher: Tokenizer) -> str | None:
    """The first id of the student that is not the same token to the teacher, in words."""
    theirs = {index: token for token, index in teacher.hf.get_vocab().items()}
    for index, token in sorted((index, token) for token, index in student.hf.get_vocab().items()):
        if theirs.get(index) != token:
            other = f"{theirs[index]!r}" if index in theirs else "nothing"
            return f"id {index} is {token!r} to the student, and {other} to the teacher"
    return None


def _cutting(tokenizer: Tokenizer) -> list[Any]:
    """What decides how text becomes ids, beside tokens that were added: these may be more in one of two."""
    spec = json.loads(tokenizer.hf.backend_tokenizer.to_str())
    model = {key: value for key, value in spec["model"].items() if key != "vocab"}
    return [model, spec["normalizer"], spec["pre_tokenizer"]]
