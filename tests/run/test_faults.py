"""What may happen to a run, end to end by the command line: signals, damaged checkpoints, bad batches, broken
rows, dead workers, wrong words. Whatever stops a run, the same command goes on and ends as if nothing had been.
"""

import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
from tests.run.cli import (
    TOY,
    Run,
    assert_same_run,
    assert_same_weights,
    facts,
    lifecycle,
    make_texts,
    metrics,
    newest,
    started,
    step_folder,
    times,
    wait_for,
    write_rows,
)
from tests.run.processes import children

from lifecycle.checkpoint import list_committed, load, verify
from lifecycle.config import build as build_config
from lifecycle.config import compose
from lifecycle.data.clean.source import HeldOut
from lifecycle.model import ModelConfig, build
from lifecycle.model.huggingface import export
from lifecycle.tokenizer.tokenizer import load as load_tokenizer

KEEP = "checkpoint.keep_last=99"


def copy_of(whole: Path, name: str) -> Path:
    """The whole run as it was before it was finished: killed after its last checkpoint."""
    run = whole.with_name(name)
    shutil.copytree(whole, run)
    shutil.rmtree(run / "model")
    (run / "run.json").write_text(json.dumps(facts(run) | {"status": "running"}))
    return run


def terminate(run: Run) -> None:
    os.kill(run.pid, signal.SIGTERM)
    done = run.end()
    assert done.code == 143, done
    assert "Traceback" not in done.err


# -- signals


def test_a_run_stopped_by_sigterm_at_any_stage_of_its_life_ends_as_if_it_had_not_been(place: Path, whole: Path) -> None:
    run = place / "outputs/stopped"
    with started(place, "run=stopped") as process:  # before the first step
        wait_for(lambda: (run / "config.yaml").exists(), process)
        terminate(process)
    with started(place, "run=stopped", "checkpoint.every_steps=1") as process:  # in the warm-up
        wait_for(lambda: step_folder(run, 1).exists(), process)
        terminate(process)
    assert list_committed(run / "checkpoints")
    with started(place, "run=stopped") as process:  # in training
        wait_for(lambda: step_folder(run, 8).exists(), process)
        terminate(process)
    with started(place, "run=stopped", "checkpoint.every_steps=19") as process:  # in a validation
        wait_for(lambda: step_folder(run, 19).exists(), process)
        terminate(process)
    assert load(step_folder(run, 20))["stage"]["validation_due"]
    assert facts(run)["status"] == "stopped" and not (run / "model").exists()
    with started(place, "run=stopped", "checkpoint.every_steps=39") as process:  # in the last validation: it goes on
        wait_for(lambda: step_folder(run, 39).exists(), process)
        os.kill(process.pid, signal.SIGTERM)
        assert process.end().code == 0
    assert_same_run(run, whole)
    for key in ("step", "value"):
        assert facts(run / "checkpoints", "best.json")[key] == facts(whole / "checkpoints", "best.json")[key]


def test_ctrl_c_saves_the_step_says_so_and_the_same_command_goes_on(place: Path, whole: Path) -> None:
    run = place / "outputs/interrupted"
    with started(place, "run=interrupted", "checkpoint.every_steps=9") as process:
        wait_for(lambda: step_folder(run, 9).exists(), process)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to all processes
        done = process.end()
    saved = max(list_committed(run / "checkpoints"))
    assert done.code == 143 and facts(run)["status"] == "stopped" and "Traceback" not in done.err
    assert "Ctrl-C again ends at once" in done.err and f"stopped after step {int(saved.name[5:])}, which" in done.err
    lifecycle(place, "run=interrupted")
    assert_same_run(run, whole)


# -- checkpoints


def test_damaged_checkpoints_are_named_passed_over_and_made_up_for(place: Path, whole: Path) -> None:
    run = copy_of(whole, "damaged")
    (step_folder(run, 40) / "manifest.json").unlink()  # half written
    weights = step_folder(run, 32) / "weights.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    flipped = step_folder(run, 24) / "state.safetensors"
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 1
    flipped.write_bytes(content)
    done = lifecycle(place, "run=damaged", KEEP)
    said = " ".join(done.err.split())
    assert f"going on from {Path('outputs/damaged/checkpoints/step-00000020')}" in said.replace(f"{place}/", "")
    reasons = {40: "no manifest.json", 32: "weights.safetensors: got", 24: "state.safetensors: got sha256"}
    for step, words in reasons.items():
        assert f"step-{step:08d}" in said and words in said
        assert (run / "checkpoints" / f"damaged-step-{step:08d}").is_dir()
        verify(step_folder(run, step))
    assert len(facts(run)["damaged"]) == 3
    assert_same_run(run, whole)


def test_a_run_killed_while_it_finished_finishes(place: Path, whole: Path) -> None:
    run = copy_of(whole, "finishing")
    lifecycle(place, "run=finishing", KEEP)
    assert_same_run(run, whole)
    assert facts(run)["status"] == "finished"


# -- batches that give no number


@pytest.fixture(scope="module")
def poisoned(place: Path, whole: Path) -> Path:
    """A parent whose embedding of one byte is not a number, and `marked.jsonl`, where one document has that byte."""
    tokenizer = load_tokenizer(str(whole))
    toy = [word for word in TOY if word.startswith("model.")]
    config: ModelConfig = build_config(compose(["stage=pretrain", *toy, "model.tied_head=false"]).model)
    model = build(config.with_vocab(tokenizer.vocab_size), seed=0)
    byte = int(tokenizer.encode_batch(["é"])[0][0])
    with torch.no_grad():
        model.embedding.weight[byte] = float("nan")
    export(model, place / "poisoned", tokenizer=tokenizer)
    texts = make_texts("long", 120, 300)
    side = HeldOut(ratio=0.1, seed=1)
    at = next(n for n in range(40, 120) if not side.holds(texts[n] + " é"))
    texts[at] += " é"
    write_rows(place / "marked.jsonl", texts)
    return place / "poisoned"


def test_a_batch_that_gives_nan_is_skipped_named_and_counted_and_too_many_end_the_run(
    place: Path, poisoned: Path
) -> None:
    run = place / "outputs/poisoned"
    words = ("run=poisoned", f"init_from={poisoned}", "data.sources.long.path=marked.jsonl", "checkpoint.every_steps=1")
    done = lifecycle(place, *words, KEEP, "stage.max_skipped=0", code=2)
    assert "more than stage.max_skipped=0" in done.err and "Traceback" not in done.err
    done = lifecycle(place, *words, KEEP, "stage.max_skipped=10")
    skipped = [int(n or 0) for n in metrics(run)["train/skipped"]]
    assert len(skipped) == 40 and 0 < skipped[-1] <= 10
    steps = [n + 1 for n in range(40) if skipped[n] > (skipped[n - 1] if n else 0)]
    for step in range(1, 41):
        loss, norm = (metrics(run)[name][step - 1] for name in ("train/loss", "train/grad_norm"))
        assert (str(loss) == "nan" or str(norm) == "nan") == (step in steps)
    for step in steps:
        assert f"step {step} skipped: loss nan" in done.err
        assert f"rows of step {step - 1} of streams 0-7" in done.err
        before, after = (load(step_folder(run, n)) for n in (step - 1, step))
        hidden = {name: v for name, v in before["state_dict"].items() if "embed" not in name}
        assert all(torch.equal(v, after["state_dict"][name]) for name, v in hidden.items())
        torch.testing.assert_close(before["state_dict"], after["state_dict"], rtol=0, atol=0, equal_nan=True)
        for index, state in before["optimizer_states"][0]["state"].items():
            for key, value in state.items():
                torch.testing.assert_close(value, after["optimizer_states"][0]["state"][index][key], rtol=0, atol=0)
    step = steps[0] + 1  # the others move the weights
    before, after = (load(step_folder(run, n))["state_dict"] for n in (step - 1, step))
    assert not torch.equal(before["model.head.weight"], after["model.head.weight"])


# -- broken rows


def test_broken_rows_are_counted_and_listed_and_too_many_end_the_run_without_loss(place: Path) -> None:
    good = [json.dumps({"text": text}).encode() for text in make_texts("broken", 300, 60)]
    bad = [b'{"text": "half', b'{"text": "\xff\xfe"}', b'{"text": 7}', b'{"other": "x"}', b"", b"[]"]
    bad.append(b'{"text": "a\x00b"')
    lines = good[:150] + bad + good[150:]
    (place / "broken.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    run = place / "outputs/broken"
    words = ("run=broken", "data.sources.short.path=broken.jsonl", "validation.every_steps=null")
    done = lifecycle(place, *words, "data.bad_rows.min_rows=10", code=2)
    assert "data.sources.short" in done.err and "max_share=0.01" in done.err and "Traceback" not in done.err
    assert f"listed in {run / 'quarantine/short.jsonl'}" in done.err.replace(
        "listed in outputs", f"listed in {place}/outputs"
    )
    met = re.search(r"short: ([0-9]+) of [0-9]+ rows are broken", done.err)
    assert met and (run / "quarantine/short.jsonl").read_text().count("\n") == int(met.group(1)) > 0
    lifecycle(place, *words, "data.bad_rows.max_share=0.2")
    row = facts(run, "ledger.json")["sources"]["short"]
    listed = [json.loads(line) for line in (run / "quarantine/short.jsonl").read_text().splitlines()]
    assert sum(row["bad"].values()) + sum(row["dropped"].values()) == len(bad)
    assert row["rows"] == len(lines)
    at = sorted({entry["line"] for entry in listed})
    assert at == [151 + number for number, line in enumerate(bad) if line]  # an empty row is not broken
    assert len(listed) == len(at)


# -- workers


def test_a_dead_worker_ends_the_run_naming_source_and_row_and_the_run_goes_on(place: Path, whole: Path) -> None:
    run = place / "outputs/worker"
    words = ("run=worker", "hardware.workers=2")
    with started(place, *words) as process:
        wait_for(lambda: step_folder(run, 8).exists(), process)
        os.kill(children(process.pid)[-1], signal.SIGKILL)
        done = process.end()
    assert done.code == 1, done
    assert "Traceback" in done.err and "It was last reading: worker 0: source '" in done.err and ", row " in done.err
    assert facts(run)["status"] == "failed"
    lifecycle(place, *words)
    assert_same_run(run, whole)


# -- starting again


def test_a_finished_run_says_so_and_touches_nothing(place: Path, whole: Path) -> None:
    before = times(whole)
    done = lifecycle(place, "run=whole", KEEP)
    assert "is finished; nothing to do" in done.out
    assert times(whole) == before


def test_a_second_start_of_a_run_at_work_says_so_and_disturbs_nothing(place: Path, whole: Path) -> None:
    run = place / "outputs/twice"
    with started(place, "run=twice", "checkpoint.keep_last=99") as first:
        wait_for(lambda: newest(run), first)
        second = lifecycle(place, "run=twice", "checkpoint.keep_last=99", code=2)
        assert f"process {first.pid} on " in second.err
        assert first.end().code == 0
    assert_same_run(whole, run)
    assert not (run / ".lock").exists()


def test_a_run_with_other_values_is_refused_with_the_keys(place: Path, whole: Path) -> None:
    before = times(whole)
    done = lifecycle(place, "run=whole", KEEP, "seed=7", "model.width=48", code=2)
    assert "was started with other values of: seed, model.width." in done.err and "Traceback" not in done.err
    done = lifecycle(place, "run=whole", KEEP, "model=tiny", "optimizer=muon", "data=python_stdlib", code=2)
    assert re.search(r"values of: (\S+, ){11}\S+ and \d+ more\. Going on", done.err)
    done = lifecycle(place, "run=whole", KEEP, "stage=midtrain", "init_from=whole", code=2)
    assert "was started as stage=pretrain. Going on" in done.err
    assert times(whole) == before


def test_resume_never_refuses_a_folder_that_has_checkpoints(place: Path, whole: Path) -> None:
    run = copy_of(whole, "never")
    before = {name: time for name, time in times(run).items() if "run.json" not in name}
    done = lifecycle(place, "run=never", KEEP, "resume=never", code=2)
    assert "resume=never, but" in done.err and "Traceback" not in done.err
    assert before.items() <= times(run).items()


def test_resume_from_a_path_goes_on_from_there(place: Path, whole: Path) -> None:
    done = lifecycle(place, "run=from", f"resume={step_folder(whole, 24)}")
    run = place / "outputs/from"
    assert f"going on from {step_folder(whole, 24)}" in " ".join(done.err.split())
    assert metrics(run)["step"] == list(range(25, 41))
    assert metrics(run)["train/loss"] == metrics(whole)["train/loss"][24:]
    assert_same_weights(run, whole)
    done = lifecycle(place, "run=from-nowhere", "resume=outputs/whole/checkpoints/step-00000007", code=2)
    assert "is no checkpoint folder" in done.err and "Traceback" not in done.err


# -- wrong words


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("data.sources.long.path=nowhere/*.jsonl", ("data.sources.long", "nowhere/*.jsonl")),
        ("data.tokenizer=long.jsonl", ("data.tokenizer", "long.jsonl", "tokenizer.json")),
        ("data.tokenizer=conf", ("data.tokenizer", "conf", "tokenizer.json")),
        (
            "model.max_positions=64",
            ("stage.sequence_length is 128", "model.max_positions=64", "(stage.sequence_length=64)"),
        ),
    ],
)
def test_wrong_input_ends_in_words_that_say_what_to_do(place: Path, word: str, said: tuple[str, ...]) -> None:
    done = lifecycle(place, "run=wrong", word, code=2)
    assert "Traceback" not in done.err
    for words in said:
        assert words in done.err, done.err


@pytest.mark.parametrize("never", ["0", "null"])
def test_a_run_may_never_save_measure_or_log_on_the_way(place: Path, never: str) -> None:
    keys = ("checkpoint.every_steps", "validation.every_steps", "logging.every_steps")
    lifecycle(place, f"run=never-{never}", "stage.max_steps=6", *(f"{key}={never}" for key in keys))
    run = place / f"outputs/never-{never}"
    assert [path.name for path in list_committed(run / "checkpoints")] == ["step-00000006"]
    found = metrics(run)
    assert found["step"] == [1, 2, 3, 4, 5, 6] and None not in found["train/loss"] and "valid/loss" not in found
    assert not (run / "checkpoints/best.json").exists()


def test_a_run_that_ended_at_a_rate_of_zero_goes_on_at_that_of_the_longer_run_or_not_at_all(place: Path) -> None:
    words, run = ("run=to-zero", "stage.schedule.min_ratio=0"), place / "outputs/to-zero"
    lifecycle(place, *words, "stage.max_steps=8")
    again = lifecycle(place, *words, "stage.max_steps=8").out
    assert "=... stage.schedule.stretch=true)" in again
    before = {name: (run / name).read_bytes() for name in ("config.yaml", "run.json", "metrics.csv")}
    done = lifecycle(place, *words, "stage.max_steps=16", code=2)
    assert "its rate was zero after 8" in done.err and "Traceback" not in done.err
    assert {name: (run / name).read_bytes() for name in before} == before
    lifecycle(place, *words, "stage.max_steps=16", "stage.schedule.stretch=true")
    rates = [rate or 0.0 for rate in metrics(run)["train/lr"]]
    assert rates[7] == 0 and min(rates[8:15]) > 0


@pytest.mark.parametrize("stretch", [False, True])
def test_a_finished_run_goes_on_at_the_rate_it_ended_with_unless_told_to_rise(place: Path, stretch: bool) -> None:
    run = f"run=on-{stretch}"
    lifecycle(place, run, "stage.max_steps=8")
    more = ("stage.max_steps=16", *(["stage.schedule.stretch=true"] if stretch else []))
    for again in (False, True):  # the second finds it finished
        done = lifecycle(place, run, *more)
        assert (("goes on from 2.00e-04 at" if stretch else "stays at 2.00e-04") in done.err) is not again
    rates = [rate or 0.0 for rate in metrics(place / f"outputs/on-{stretch}")["train/lr"]]
    assert rates[7] == pytest.approx(2e-4) and (max(rates[8:]) > 1e-3) is stretch
    assert rates[-1] == pytest.approx(2e-4)
