"""`stage=traces`: only right and whole answers are kept, none twice, and a kill changes no byte."""

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.toy import toy

from lifecycle import config
from lifecycle.errors import UserError
from lifecycle.jobs import traces as job
from lifecycle.jobs.traces import Written
from lifecycle.model import build
from lifecycle.model.huggingface import export
from lifecycle.rewards.graded import Marks, Rewards
from lifecycle.rewards.record import Answered
from lifecycle.run import run
from lifecycle.tokenizer.tokenizer import train_bpe

TOKENIZER = train_bpe(["ab ba a b aa bb " * 5] * 20, vocab_size=270, digits=1)
MODEL = toy(width=32, heads=2, kv_heads=1, head_dim=16, ffn_width=48, vocab_size=320, max_positions=96)
WORDS = (
    "stage=traces",
    "init_from=theirs",
    "run=traces",
    "data=files",
    "data.sources.mine.path=asked.jsonl",
    "data.sources.mine.validation=null",
    "stage.verifier=exact_match",
    "stage.max_new_tokens=16",
    "stage.temperature=1.0",
    "stage.samples=6",
    "stage.part_prompts=4",
    "hardware.precision=fp32",
    "hardware.workers=0",
)


def lenient(completion: str) -> float:
    """A verifier that a model without training meets in half of its answers."""
    return float(len(completion) % 2 == 0)


class Lenient(Rewards):
    """Marks by `lenient`, in this process."""

    def graded(self, completions: Sequence[str], records: Sequence[Answered], sources: Sequence[str]) -> Marks:
        marks_SR = torch.tensor([[lenient(one)] for one in completions], dtype=torch.float64).reshape(-1, 1)
        return Marks(names=self.names, marks_SR=marks_SR, weights_SR=torch.ones_like(marks_SR))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with `theirs`, a model that often ends, and prompts, of which one stands there twice."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(job, "Rewards", Lenient)
    model = build(MODEL, seed=3)
    model.embedding.weight.data[list(TOKENIZER.end_ids)] *= 6.0  # tied: their logits are large, of either sign
    model.embedding.weight.data[270:] = 0
    export(model, tmp_path / "theirs", tokenizer=TOKENIZER)
    rows = [{"prompt": f"{'ab' * (n % 5)} {n}", "completion": "ab"} for n in range(19)]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0]]))
    return tmp_path


def sample(*words: str) -> None:
    run(config.compose([*WORDS, *words]))


def rows(place: Path, name: str = "traces") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (place / f"outputs/{name}/traces.jsonl").read_text().splitlines()]


def result(place: Path, name: str = "traces") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((place / f"outputs/{name}/run.json").read_text())["result"]
    return found


def test_what_is_right_is_kept_up_to_so_many_a_prompt_and_none_of_them_twice(place: Path) -> None:
    sample("stage.keep=2")
    found, told = rows(place), result(place)
    assert found and all(lenient(row["messages"][-1]["content"]) for row in found)
    assert [turn["role"] for turn in found[0]["messages"]] == ["user", "assistant"]
    by_prompt: dict[str, list[str]] = {}
    for row in found:
        by_prompt.setdefault(row["messages"][0]["content"], []).append(row["messages"][-1]["content"])
    assert max(map(len, by_prompt.values())) == 2 and all(len(set(said)) == len(said) for said in by_prompt.values())
    assert (told["asked"], told["asked before"], told["sampled"]) == (19, 1, 19 * 6)
    assert told["accepted"] + told["wrong"] + told["unfinished"] == told["sampled"]
    assert told["kept"] + told.get("equal", 0) + told.get("beyond keep", 0) == told["accepted"]
    assert (told["kept"], told["solved"]) == (len(found), len(by_prompt))
    assert told["acceptance"] == round(told["accepted"] / told["sampled"], 6)
    assert told["sources"]["mine"]["kept"] == len(found)


def test_a_job_that_ends_anywhere_goes_on_to_the_same_bytes(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sample("run=whole")
    before: Callable[..., None] = Written.add

    def fails(self: Written, found: Any, counts: Any) -> None:
        before(self, found, counts)
        if self.parts == 2:
            with self._path.open("ab") as file:
                file.write(b'{"half')
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(Written, "add", fails)
    with pytest.raises(UserError, match="no room for"):
        sample()
    assert not (place / "outputs/traces/traces.jsonl").exists()
    monkeypatch.setattr(Written, "add", before)
    with pytest.raises(UserError, match="was started with other values of: stage.samples"):
        sample("stage.samples=5")
    sample()
    first, second = ((place / f"outputs/{name}/traces.jsonl").read_bytes() for name in ("whole", "traces"))
    assert first == second and result(place)["sha256"] == result(place, "whole")["sha256"]
    assert {**result(place), "file": ""} == {**result(place, "whole"), "file": ""}


def test_another_teacher_under_the_same_name_is_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Written, "end", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sample()
    export(build(MODEL, seed=4), place / "theirs", tokenizer=TOKENIZER)
    with pytest.raises(UserError, match="another value of: the teacher's files"):
        sample()


def test_other_tests_of_the_same_programs_are_refused_though_no_prompt_shows_them(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(wanted: str) -> None:
        tests = json.dumps({"inputs": ["1"], "outputs": [wanted]})
        known = {"input_output": tests, "solutions": '["print(2)"]'}
        found = [{"question": "ab" * n, **known} for n in range(1, 5)]
        (place / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))

    write("2")
    monkeypatch.setattr(Written, "end", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sample("stage.verifier=code")
    write("3")
    with pytest.raises(UserError, match="another value of: the prompts"):
        sample("stage.verifier=code")


def test_prompts_without_a_known_answer_are_refused_by_their_number(place: Path) -> None:
    (place / "asked.jsonl").write_text('{"messages": [{"role": "user", "content": "a"}]}\n' * 3)
    with pytest.raises(UserError, match="no row is a prompt with a known answer.*'no answer': 3"):
        sample()
    (place / "asked.jsonl").write_text('{"prompt": "a", "completion": ""}\n' * 3)
    with pytest.raises(UserError, match="no row is a prompt with a known answer.*mine: {'[^']*': 3}"):
        sample("run=empty")


@pytest.mark.parametrize("kept", [None, 20])
def test_what_was_saved_and_is_there_no_more_is_told(
    kept: int | None, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Written, "end", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sample("stage.max_new_tokens=4")
    file = place / "outputs/traces/.traces.jsonl.partial"
    content = file.read_bytes()
    if kept is None:
        file.unlink()
    else:
        file.write_bytes(content[:kept])
    words = "is gone" if kept is None else f"has {kept} bytes"
    with pytest.raises(UserError, match=f"{words}, and {len(content):,} were saved .* delete the folder"):
        sample("stage.max_new_tokens=4")


def test_held_out_prompts_are_never_asked(place: Path) -> None:
    sample("data.sources.mine.validation={ratio: 0.4, seed: 1}")
    assert 0 < result(place)["asked"] < 19


def test_thoughts_that_begin_in_the_prompt_are_whole_in_the_trace(place: Path) -> None:
    (place / "thinks.jinja").write_text(
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n<think>{% endif %}"
    )
    ids = TOKENIZER.encode_marked("<|im_start|>assistant\n<think>").tolist()
    asked = job.Asked(id="1", source="s", turns=[], ids=ids, answer="b")

    class Said:
        stop_reason = ("stop_id",)

        def completion(self, at: int) -> list[int]:
            return [*TOKENIZER.encode_marked("a</think>b").tolist(), TOKENIZER.end_ids[0]]

    text = job._whole(asked, Said(), 0, TOKENIZER)  # type: ignore[arg-type]
    assert text == "<think>\na</think>b"
    Said.stop_reason = ("length",)
    assert job._whole(asked, Said(), 0, TOKENIZER) is None  # type: ignore[arg-type]


def parts_of(note: Path) -> int:
    """Parts that are saved."""
    return int(json.loads(note.read_text())["parts"]) if note.exists() else 0


@pytest.mark.slow
def test_a_job_killed_at_random_moments_ends_with_the_same_bytes(place: Path) -> None:
    words = [*WORDS, "stage.verifier=number", "stage.max_new_tokens=48", "stage.samples=8", "stage.part_prompts=1"]
    numbers = [{"prompt": f"{n} a", "completion": f"{n % 3}"} for n in range(120)]
    (place / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in numbers))

    def begin(name: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-m", "lifecycle", *words, f"run={name}"], cwd=place)

    assert begin("whole").wait() == 0
    draw, reached, note = random.Random(4), [0], place / "outputs/killed/progress.json"
    for _ in range(5):
        with begin("killed") as process:
            while process.poll() is None and parts_of(note) == reached[-1]:
                time.sleep(0.01)
            time.sleep(draw.uniform(0.0, 0.3))
            process.send_signal(signal.SIGKILL)
            process.wait()
        reached.append(parts_of(note))
    assert begin("killed").wait() == 0
    print(f"parts at the kills: {reached}")
    assert 3 < len(set(reached)) and reached[-2] < 120
    first, second = (place / f"outputs/{name}/traces.jsonl" for name in ("whole", "killed"))
    assert first.read_bytes() == second.read_bytes() and result(place, "whole")["sampled"] == 960
    assert {**result(place, "killed"), "file": ""} == {**result(place, "whole"), "file": ""}
