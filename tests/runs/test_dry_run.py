"""What a dry run says of passes and shares is what the run would do."""

import json
import re
from pathlib import Path

import pytest

from lifecycle import config
from lifecycle.errors import UserError
from lifecycle.run import run
from lifecycle.runs.dry_run import dry_run
from lifecycle.runs.plan import make_plan

TEXT = "the cat sat on a mat and then it ran far away from that old grey house near some river bank "


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two sources of the same size."""
    monkeypatch.chdir(tmp_path)
    for name in ("first", "second"):
        rows = [json.dumps({"text": f"{name} {number} {TEXT * 3}"}) + "\n" for number in range(200)]
        (tmp_path / f"{name}.jsonl").write_text("".join(rows))
    return tmp_path


def told(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, float]:
    """The share of every source that the dry run of `words` prints, in percent."""
    cfg = config.compose(
        [
            "data=files",
            "~data.sources.mine",
            "+data.sources.first={path: first.jsonl}",
            "+data.sources.second={path: second.jsonl}",
            "dry_run=true",
            "stage.max_tokens=null",
            "stage.max_steps=10",
            "stage.global_batch_tokens=1024",
            "stage.sequence_length=128",
            "hardware.peak_tflops=1",
            *words,
        ]
    )
    dry_run(make_plan(cfg))
    lines = [re.split(r"\s{2,}|[│|]", line.strip()) for line in capsys.readouterr().out.splitlines()]
    return {
        cells[0].strip(): float(found[0])
        for cells in lines
        if cells[0].strip() in ("first", "second") and (found := re.findall(r"([\d.]+) ?%", " ".join(cells)))
    }


def test_shares_follow_the_weights(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys, "data.sources.first.weight=3") == {"first": 75, "second": 25}


def test_shares_follow_the_weights_of_the_phases(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = "[{at_steps: 0, weights: {first: 1.0}}, {at_steps: 6, weights: {first: 0.5, second: 0.5}}]"
    assert told(capsys, f"stage.phases={lines}") == {"first": 80, "second": 20}


def test_a_source_that_is_measured_only_gets_nothing(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys, "data.sources.second.weight=0") == {"first": 100, "second": 0}


def test_rows_longer_than_the_model_are_refused_as_the_run_refuses_them(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["model=tiny", "model.max_positions=64"]
    with pytest.raises(UserError, match=r"sequence_length is 128, more than model.max_positions=64: shorten"):
        told(capsys, *words)
    longer = ["data=files", "data.sources.mine.path=first.jsonl", "stage.sequence_length=128", "stage.max_steps=2"]
    with pytest.raises(UserError, match="more than model.max_positions=64"):
        run(config.compose([*longer, "stage.max_tokens=null", "stage.global_batch_tokens=1024", *words]))


CHATS = ["data=files", "data.sources.mine.path=chats.jsonl", "stage.view=chat", "stage.max_steps=2", "dry_run=true"]


@pytest.fixture
def chats(place: Path) -> Path:
    """Conversations, one of three longer than a row."""
    said = ["yes " * 9, "no " * 9, "well " * 300]
    rows = [{"instruction": f"Say {n}", "output": said[n % 3]} for n in range(60)]
    (place / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place


def test_items_are_counted_by_view_with_what_is_too_long(chats: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dry_run(make_plan(config.compose([*CHATS, "stage.max_tokens=null", "stage.sequence_length=128"])))
    said = " ".join(capsys.readouterr().out.split())
    assert re.search(r"mine: its \d+ conversations, of \d+ positions on the mean, 3\d% of them longer than a row", said)
    assert re.search(r"3\d% of the conversations of mine are longer than a row of 128 and are left out", said)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["data.sources.mine.path=first.jsonl"], "view 'chat', but data.sources.mine .format 'text'. gives text"),
        (["data.chat_template=absent.jinja"], "data.chat_template is 'absent.jinja', and there is no such file"),
        (["data.chat_template=none"], "chat_template=none, but the stage trains on the view 'chat'"),
        (["data.chat_template=mute.jinja"], "mute.jinja is of no use for training"),
    ],
)
def test_a_view_and_a_template_that_the_run_refuses_are_refused(chats: Path, words: list[str], reason: str) -> None:
    (chats / "mute.jinja").write_text("{% for turn in messages %}{{ turn.role }}{% endfor %}")
    with pytest.raises(UserError, match=reason):
        dry_run(make_plan(config.compose([*CHATS, *words])))


def test_rows_of_which_none_can_be_read_are_warned_of(chats: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["data.sources.mine.format=instruction", "data.sources.mine.fields={output: answer}"]
    dry_run(make_plan(config.compose([*CHATS, *words])))
    assert "60 of 60 rows are broken (missing field answer 60)" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["stage.sequence_length=8"], r"100% of the conversations of mine are longer than a row of 8 .*raise stage"),
        (["data.sources.mine.format=instruction", "data.sources.mine.fields={output: answer}"], "60 of 60 rows are br"),
    ],
)
def test_passes_over_nothing_are_refused(chats: Path, words: list[str], reason: str) -> None:
    passes = ["stage.max_tokens=null", "stage.max_steps=null", "stage.max_epochs=2"]
    with pytest.raises(UserError, match=f"passes over 'mine', of which nothing can be trained on: .*{reason}"):
        dry_run(make_plan(config.compose([*CHATS, *passes, *words])))


def test_rows_that_a_template_cannot_write_count_once(chats: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (chats / "strict.jinja").write_text(
        "{% for turn in messages %}{% if '7' in turn.content %}{{ raise_exception('no sevens') }}{% endif %}"
        "[{{ turn.role }}]{% if turn.role == 'assistant' %}{% generation %}{{ turn.content }}<|end|>{% endgeneration %}"
        "{% else %}{{ turn.content }}<|end|>{% endif %}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    dry_run(make_plan(config.compose([*CHATS, "stage.max_tokens=null", "data.chat_template=strict.jinja"])))
    assert re.search(r"\d of 60 rows are broken \(chat template: no sevens", " ".join(capsys.readouterr().out.split()))


def test_shards_of_another_view_are_refused(chats: Path) -> None:
    words = ["experiment=debug", "data=files", "data.sources.mine.path=chats.jsonl", "stage.processes=1"]
    run(config.compose([*words, "stage=prepare", "run=texts"]))
    with pytest.raises(UserError, match="mine: its shards were made for stage.view=text, and this run reads chat"):
        dry_run(make_plan(config.compose([*CHATS, "data.prepared=texts"])))


USMLE = ["model=medium_large", "data=usmle", "hardware=a100", "dry_run=true"]


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        # 182,822 prompts at 0.7 of 16 a step; 128 x 512 positions of 2.825 GFLOP at half of 312 TFLOP/s
        (["stage=grpo"], [r"steps +16,324", r"samples a step +128 = 16 x 8", r"50% .*5\.4 h", r"medmcqa .* 1\.00 "]),
        # 2 x 10,178 prompts at 0.3 of 16 a step; 256 x 1,024 of 2.967 GFLOP, and a third more for the reference
        (["stage=grpo_usmle"], [r"steps +4,241", r"samples +1,085,696", r"50% .*7\.8 h", r"medqa .* 2\.00 "]),
        (
            ["stage=grpo_usmle", "stage.max_epochs=null", "stage.max_tokens=600e6"],
            [r"steps +2,288", r"tokens at most +599,785,472", r"50% .*4\.2 h", r"frozen weights .* 0\.89"],
        ),
        # two updates: a forward pass more, before the first
        (["stage=grpo", "stage.updates_per_rollout=2"], [r"steps +16,324", r"50% .*7\.2 h"]),
    ],
)
def test_reinforcement_of_half_a_billion_is_planned_from_its_files(
    place: Path, capsys: pytest.CaptureFixture[str], words: list[str], wanted: list[str]
) -> None:
    dry_run(make_plan(config.compose([*USMLE, *words])))
    said = capsys.readouterr().out
    assert re.search(r"parameters +447\.28 M", said) and not any(place.glob("outputs/*"))
    assert "weights (fp32)" in said and "would be read" not in said  # no source more often than it may be
    for line in wanted:
        assert re.search(line, said), line
