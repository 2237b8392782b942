"""rollouts.html: which samples it shows, and that nothing that a model wrote does anything in it."""

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from tests.report.rollouts.made import HOSTILE, sample, write, write_answers

from lifecycle.errors import UserError
from lifecycle.report.__main__ import main
from lifecycle.report.rollouts import write_rollouts
from lifecycle.report.rollouts.kept import read_kept, spread
from lifecycle.report.rollouts.picked import CHANGED, EACH, changed, changed_answers, difference, extremes, typical


class Read(HTMLParser):
    """Tags with their attributes, and the text of the page outside of its own style and script."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags, self.words, self._inside = list[tuple[str, dict[str, str | None]]](), "", ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_data(self, data: str) -> None:
        self.words += "" if self._inside in ("script", "style") else data


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two steps that asked the same eight prompts, four samples each; the last step is better."""
    for step, right in ((10, 1), (20, 3)):
        rows = [sample(step, p, n, float(n < (right if p < 4 else 2))) for p in range(8) for n in range(4)]
        write(tmp_path / "taught", step, rows)
    return tmp_path / "taught"


def test_best_and_worst_are_of_several_prompts_of_each_source(run: Path) -> None:
    write(run, 30, [sample(30, 0, 0, 0.25, source="other", id="x"), sample(30, 1, 0, float("nan"), source="other")])
    kept = read_kept(run)
    best, worst = extremes(kept, best=True), extremes(kept, best=False)
    assert [(m.prompt[0], m.reward) for m in best] == [("other", 0.25)] + [("questions", 1.0)] * EACH
    assert [m.reward for m in worst] == [0.25] + [0.0] * EACH  # a missing reward is neither
    assert len({m.prompt for m in best}) == EACH + 1 and {m.step for m in best[1:]} == {20}


def test_prompts_that_were_asked_again_are_compared_by_the_mean_of_their_group(run: Path) -> None:
    found = changed(read_kept(run))
    assert len(found) == CHANGED
    assert [(one.reward_before, one.reward_after) for one in found[:4]] == [(0.25, 0.75)] * 4
    assert {one.before.step for one in found} == {10} and {one.after.step for one in found} == {20}
    assert typical(read_kept(run).visits["questions", "questions:0"][10]).reward == 0.0  # of 1, 0, 0, 0


def test_two_runs_are_compared_where_both_asked(run: Path, tmp_path: Path) -> None:
    write(tmp_path / "other", 20, [sample(20, p, 0, 0.0) for p in (0, 1)] + [sample(20, 9, 0, 0.0)])
    found = changed(read_kept(run), read_kept(tmp_path / "other"))
    assert {one.after.prompt[1] for one in found} == {"questions:0", "questions:1"}
    assert all((one.reward_before, one.reward_after) == (0.0, 0.75) for one in found)
    page = write_rollouts(run, tmp_path / "other").read_text()
    assert "Samples of taught, beside other" in page and "other, step 20: mean reward of its group 0.000" in page


def test_held_out_questions_that_became_right_or_wrong_come_first(run: Path) -> None:
    asked = [("a", "no", False, "B", True), ("b", "B", True, "no", False), ("c", "x y", False, "x z", False)]
    lines = [(0, q, one, ok) for q, one, ok, *_ in asked] + [(50, q, two, ok) for q, *_, two, ok in asked]
    write_answers(run, lines)
    page = write_rollouts(run).read_text()
    assert "of 3 questions 1 became right and 1 wrong" in page and 'data-source="held"' in page
    rows = [{"domain": "d", "prompt": q, "completion": said, "right": ok} for _, q, said, ok in lines]
    chosen, counts = changed_answers(rows[:3], rows[3:])
    assert [one.after["prompt"] for one in chosen] == ["a", "b", "c"]
    assert counts == {"asked": 3, "gained": 1, "lost": 1}
    with (run / "answers.jsonl").open("a") as file:
        file.write('{"step": 50, "domain": "he')  # the run was killed as it wrote
    assert write_rollouts(run).read_text() == page


def test_many_steps_are_spread_evenly_and_few_are_all_there() -> None:
    assert spread([1, 2, 3], 3) == [1, 2, 3] and spread([], 3) == []
    assert spread(range(0, 1000, 10), 4) == [0, 330, 660, 990]


def test_nothing_that_was_written_acts_on_the_page(tmp_path: Path) -> None:
    for step in (1, 2):  # two steps: it stands among those that changed, too
        row = sample(step, 0, 0, 1.0, completion=f"{step} {HOSTILE}", prompt=HOSTILE, answer=HOSTILE)
        write(tmp_path / "bad", step, [{**row, "source": f'"><b>{HOSTILE}', "id": HOSTILE}])
    write_answers(tmp_path / "bad", [(0, HOSTILE, HOSTILE, False), (9, HOSTILE, f"9 {HOSTILE}", True)])
    page = write_rollouts(tmp_path / "bad").read_text()
    read = Read(page)
    named = [tag for tag, _ in read.tags]
    assert named.count("script") == 1 and not {"img", "iframe", "a", "link"} & {*named}
    assert not any(name.startswith("on") or name in ("src", "href") for _, attrs in read.tags for name in attrs)
    assert "<script>alert(1)</script>" in read.words and "\u202e" not in page and "\x00" not in page
    assert "\\u202eturned\\u0000" in read.words
    (policy,) = re.findall(r"script-src '([^']+)'", page)
    script = page.rpartition("<script>")[2].partition("</script>")[0]
    assert policy == "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def test_rewards_advantage_and_an_unfinished_answer_are_told(tmp_path: Path) -> None:
    row = sample(5, 0, 0, 0.5, stop_reason="length", advantage=-1.75)
    row["logprobs"][0], row["trained"][1] = -5.0, False
    write(tmp_path / "cut", 5, [row])
    page = write_rollouts(tmp_path / "cut").read_text()
    for words in ("reward 0.5", "choice 0.5", "length missing", "advantage -1.750", "known answer: B"):
        assert words in page, words
    write(tmp_path / "whole", 5, [sample(5, 0, 0, 0.5)])
    assert "tokens, ended by itself" in write_rollouts(tmp_path / "whole").read_text()
    assert f"unfinished: cut off at {len(row['token_ids'])} tokens" in page and '<pre class="d3">' in page
    assert re.search(r'<span class="l4" title="probability 0.00674, logprob -5.000">', page)
    assert re.search(r'<span class="l1 off" title="probability 0.607', page)


def test_tokens_are_the_whole_text_and_a_run_without_a_tokenizer_has_it_too(run: Path) -> None:
    said = "naïve 中文 🙂 end"
    write(run, 30, [sample(30, 0, 0, 1.0, completion=said, advantage=9.0)])
    read = Read(write_rollouts(run).read_text())
    assert said in read.words
    for file in (run / "tokenizer").iterdir():
        file.unlink()
    assert said in Read(write_rollouts(run).read_text()).words


def test_steps_without_samples_and_samples_without_tokens_are_no_fault(run: Path, tmp_path: Path) -> None:
    write(run, 30, [])
    write(run, 40, [sample(40, 0, 0, 1.0, completion="", advantage=9.0)], rank="-1")
    page = write_rollouts(run).read_text()
    assert "4 steps were kept: 65 samples" in page and "nothing" in page
    write(tmp_path / "none", 1, [])
    with pytest.raises(UserError, match="its kept steps have no sample in them"):
        write_rollouts(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has no kept samples .*stage.keep_rollouts"):
        write_rollouts(tmp_path / "empty")


def test_the_command_writes_the_page_and_refuses_in_words(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--rollouts", str(run)]) == 0
    assert capsys.readouterr().out.strip() == str(run / "rollouts.html") and (run / "rollouts.html").is_file()
    assert main(["--rollouts", str(run / "absent")]) == 2
    assert "has no kept samples" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--rollouts", "a", "b", "c"])


def test_texts_differ_by_their_words() -> None:
    assert difference("the same words", "the same words") == 0 and difference("a b", "c d") == 1
    assert 0 < difference("a b c", "a b d") < 1
