"""An endpoint that fails, hangs, lies or floods costs a question its reply, and nothing else."""

import json
import re
import threading
import time
from collections.abc import Callable, Mapping
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from tests.rewards.judge.served import Answer, keys, said, serving

from lifecycle.errors import UserError
from lifecycle.rewards.judge import endpoint
from lifecycle.rewards.judge.endpoint import LARGEST, Endpoint, about
from lifecycle.rewards.judge.kept import KeptReplies, PaidBy
from lifecycle.rewards.judge.question import JudgeQuestion, NoReply, Outcome, Reply
from lifecycle.rewards.judge.remote import RemoteJudge

FINE = said("Score: 7")
SECRET = "sk-very-secret-0123456789"


def ask(
    answer: Callable[[Mapping[str, Any], int], Answer] | Answer, count: int = 1, **changed: Any
) -> tuple[list[Outcome | None], list[dict[str, Any]]]:
    """The outcomes of `count` questions, and the requests that were made."""
    questions = [JudgeQuestion(system="", user=f"q{number}") for number in range(count)]
    with serving(answer if callable(answer) else lambda body, number: answer) as served:
        found = Endpoint(keys(url=served.url, **changed)).replies(questions, lambda number, reply: True)
    return found, served.bodies


def body(**parts: Any) -> Answer:
    return Answer(body=json.dumps(parts).encode())


def test_a_request_is_of_the_form_that_endpoints_know() -> None:
    with serving(lambda body, number: FINE) as served:
        question = JudgeQuestion(system="Be strict.", user="q")
        keys_of = keys(url=f"{served.url}/", request={"top_p": 0.5}, temperature=None, max_new_tokens=9)
        (found,) = Endpoint(keys_of).replies([question], lambda number, reply: True)
    assert found == Reply(text="Score: 7", tokens_in=100, tokens_out=10)
    messages = [{"role": "system", "content": "Be strict."}, {"role": "user", "content": "q"}]
    assert served.bodies == [{"model": "tester", "messages": messages, "max_tokens": 9, "top_p": 0.5}]
    assert served.headers[0]["path"] == "/v1/chat/completions" and "Authorization" not in served.headers[0]


def test_many_are_asked_at_a_time_and_answered_in_their_order() -> None:
    questions = [JudgeQuestion(system="", user=str(number)) for number in range(40)]
    with serving(
        lambda body, number: Answer(**{**vars_of(said(body["messages"][-1]["content"])), "hang_s": 0.02})
    ) as served:
        found = Endpoint(keys(url=served.url, in_flight=8)).replies(questions, lambda number, reply: True)
    assert [one.text for one in found if isinstance(one, Reply)] == [question.user for question in questions]
    assert 2 <= served.most_at_once <= 8


def vars_of(answer: Answer) -> dict[str, Any]:
    return {"status": answer.status, "body": answer.body}


AGAIN = {
    "busy": Answer(status=429, body=b"slow down"),
    "fault": Answer(status=503, body=b"<html>no</html>"),
    "cut off": Answer(body=FINE.body, cut=20),
    "nothing": Answer(body=FINE.body, cut=0),
    "no JSON": Answer(body=b"<html>welcome</html>"),
    "half JSON": Answer(body=FINE.body[:-5]),
    "a tower": Answer(body=b"[" * 200_000),
    "no choices": body(choices=[]),
    "other choices": body(choices={"0": 1}),
    "a list": body(choices=[[1]]),
    "other content": body(choices=[{"message": {"content": 3}}]),
    "an error of 500": body(error={"code": 502, "message": "upstream"}),
    "wrong encoding": Answer(body=b"\xff\xfe\x00", headers={"Content-Type": "application/json; charset=nonsense"}),
}
FINAL = {
    "wrong request": (Answer(status=400, body=b'{"error": "too long"}'), "status 400: .*too long"),
    "wrong key": (Answer(status=401, body=b"who?"), "status 401: who"),
    "moved": (Answer(status=302, headers={"Location": "http://127.0.0.1:9/"}), "status 302"),
    "an error of 400": (body(error={"code": 400, "message": "bad"}), "status 200: .*bad"),
    "a flood": (Answer(body=b" " * (LARGEST + 1)), "more than 4,194,304 bytes"),
}


@pytest.mark.parametrize("name", AGAIN)
def test_what_may_pass_is_tried_again(name: str) -> None:
    found, requests = ask(lambda body, number: AGAIN[name] if number < 3 else FINE)
    assert found == [Reply(text="Score: 7", tokens_in=100, tokens_out=10)] and len(requests) == 3
    found, requests = ask(AGAIN[name])
    assert isinstance(found[0], NoReply) and found[0].why and len(requests) == 3


@pytest.mark.parametrize("name", FINAL)
def test_what_will_not_pass_is_not_tried_again(name: str) -> None:
    answer, why = FINAL[name]
    found, requests = ask(answer)
    assert isinstance(found[0], NoReply) and len(requests) == 1
    assert re.search(why, found[0].why)


def test_one_that_hangs_is_left_after_its_time() -> None:
    began = time.monotonic()
    found, requests = ask(Answer(body=FINE.body, hang_s=20), timeout_s=0.2, attempts=2)
    assert time.monotonic() - began < 5 and len(requests) == 2
    assert isinstance(found[0], NoReply) and "no answer in 0.2 s" in found[0].why
    (found_,), _ = ask(lambda body, number: Answer(body=FINE.body, hang_s=20 if number == 1 else 0), timeout_s=0.3)
    assert isinstance(found_, Reply)


def test_nobody_there_is_told() -> None:
    found = Endpoint(keys(url="http://127.0.0.1:9/v1")).replies([JudgeQuestion(system="", user="q")], lambda n, r: True)
    assert isinstance(found[0], NoReply) and "Connect" in found[0].why


@pytest.mark.parametrize("wanted", ["1", "in an hour", "9" * 40])
def test_the_wait_that_an_endpoint_asks_for_is_kept_to_within_a_bound(wanted: str) -> None:
    began = time.monotonic()
    wanted = formatdate(time.time() + 3600, usegmt=True) if wanted == "in an hour" else wanted
    busy = Answer(status=429, headers={"Retry-After": wanted})
    found, requests = ask(lambda body, number: busy if number == 1 else FINE, longest_wait_s=0.5)
    assert isinstance(found[0], Reply) and 0.5 <= time.monotonic() - began < 4
    nonsense = Answer(status=429, headers={"Retry-After": "soon"})
    assert isinstance(ask(lambda body, number: nonsense if number == 1 else FINE)[0][0], Reply)


def test_a_reply_that_was_cut_off_or_withheld_says_nothing() -> None:
    for reason in ("length", "content_filter"):
        cut = body(choices=[{"message": {"content": "Score: 1"}, "finish_reason": reason}])
        found = ask(cut)[0][0]
        assert isinstance(found, Reply) and not found.whole
    refused = ask(said(None))[0][0]
    assert isinstance(refused, Reply) and not refused.whole and refused.text == ""
    for end in ("stop", "eos_token", None):
        there = body(choices=[{"message": {"content": "Score: 1"}, "finish_reason": end}])
        found = ask(there)[0][0]
        assert isinstance(found, Reply) and found.whole


def test_tokens_that_are_not_told_are_estimated() -> None:
    for usage in ({"prompt_tokens": -5, "completion_tokens": True}, {"prompt_tokens": None, "completion_tokens": "9"}):
        found = ask(said("Score: 7", **usage))[0][0]
        assert isinstance(found, Reply) and (found.tokens_in, found.tokens_out) == (1, 2)
    assert about("") == 0 and about("12345") == 2


def test_where_nothing_is_answered_the_rest_is_not_sent() -> None:
    found, requests = ask(Answer(status=400), 100, in_flight=4)
    assert 8 <= len(requests) <= 12 and sum("not asked" in one.why for one in found if isinstance(one, NoReply)) >= 88
    _, requests = ask(Answer(status=401), 100, in_flight=4)
    assert len(requests) <= 8
    found, requests = ask(lambda body, number: FINE if number == 1 else Answer(status=400), 40, in_flight=1)
    assert len(requests) == 40 and isinstance(found[0], Reply)
    gone = Answer(status=503)  # in the middle of a call
    found, requests = ask(lambda body, number: FINE if number == 1 else gone, 40, in_flight=1, attempts=1)
    assert len(requests) == 9 and isinstance(found[39], NoReply) and "not asked" in found[39].why
    found, requests = ask(lambda body, number: gone if number % 4 else FINE, 40, in_flight=1, attempts=1)
    assert len(requests) == 40


def test_what_fails_on_the_way_fails_the_call_and_leaves_nothing_running() -> None:
    def full(number: int, reply: Reply) -> bool:
        raise OSError(28, "no space left on device")

    with serving(lambda body, number: Answer(body=FINE.body, hang_s=0 if number == 1 else 20)) as served:
        with pytest.raises(OSError, match="no space"):
            Endpoint(keys(url=served.url)).replies([JudgeQuestion(system="", user=n) for n in "abc"], full)
    assert not [thread for thread in threading.enumerate() if thread.name == "ask-judge"]


def test_who_interrupts_the_call_does_not_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(found: object) -> None:
        time.sleep(0.2)
        raise KeyboardInterrupt

    monkeypatch.setattr(endpoint.Future, "result", interrupted)
    began = time.monotonic()
    with serving(lambda body, number: Answer(body=FINE.body, hang_s=20)) as served:
        with pytest.raises(KeyboardInterrupt):
            Endpoint(keys(url=served.url)).replies([JudgeQuestion(system="", user="q")], lambda number, reply: True)
    assert time.monotonic() - began < 4


# -- the key


def test_the_key_is_sent_and_never_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("JUDGE_KEY", f" {SECRET}\n")

    def echo(body: Mapping[str, Any], number: int) -> Answer:
        return said(f"You are {SECRET}.\nScore: 3") if number == 1 else Answer(status=400, body=SECRET.encode() * 20)

    with serving(echo) as served:
        judge = RemoteJudge(keys(url=served.url, key_from="JUDGE_KEY", in_flight=1), folder=tmp_path, run="r")
        found = judge.replies([JudgeQuestion(system="", user=name) for name in "ab"])
    assert [headers["Authorization"] for headers in served.headers] == [f"Bearer {SECRET}"] * 2
    assert isinstance(found[0], Reply) and found[0].text == "You are [the key].\nScore: 3"
    assert isinstance(found[1], NoReply) and "[the key]" in found[1].why
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*.jsonl"))
    assert kept and SECRET.encode() not in kept
    for told in (found, judge.spent.state(), vars(judge.spent), keys(key_from="JUDGE_KEY")):
        assert SECRET[:12] not in repr(told)


def test_a_key_that_is_not_there_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    values: tuple[str | None, ...] = (None, " ")
    for value in values:
        monkeypatch.delenv("JUDGE_KEY", raising=False)
        if value is not None:
            monkeypatch.setenv("JUDGE_KEY", value)
        with pytest.raises(UserError, match="export JUDGE_KEY="):
            Endpoint(keys(key_from="JUDGE_KEY"))
    monkeypatch.setenv("JUDGE_KEY", "sk-\u00e4\u00e4")
    with pytest.raises(UserError) as raised:
        Endpoint(keys(key_from="JUDGE_KEY"))
    assert "sk-" not in str(raised.value)


# -- what was asked before, and what it cost


def remote(url: str, folder: Path, *, run: str = "r", **changed: Any) -> RemoteJudge:
    return RemoteJudge(keys(url=url, price_in=1e4, price_out=1e5, **changed), folder=folder, run=run)


def called(judge: RemoteJudge, *names: str) -> list[Outcome]:
    """A whole call, with what whoever asks does behind it."""
    found = judge.replies(questions(*names))
    judge.spent.settle(judge.spent.new_in, judge.spent.new_out)
    return found


def questions(*names: str) -> list[JudgeQuestion]:
    return [JudgeQuestion(system="", user=name) for name in names]


def test_a_question_is_asked_once_on_this_machine(tmp_path: Path) -> None:
    with serving(lambda body, number: said(f"{number}")) as served:
        first = remote(served.url, tmp_path)
        replies = called(first, "a", "b", "a")
        assert replies[0] == replies[2] and len(served.bodies) == 2
        assert first.spent.cost == pytest.approx(2 * (100 * 1e4 + 10 * 1e5) / 1e6) and first.spent.calls == 1
        again = called(first, "b", "a")
        assert [one.text for one in again if isinstance(one, Reply)] == [
            one.text for one in replies[1::-1] if isinstance(one, Reply)
        ]
        other = remote(served.url, tmp_path, run="other")
        assert called(other, "a", "b")[0] == again[1] and other.spent.cost == 0
        assert len(served.bodies) == 2
        for changed in ({"version": "2"}, {"temperature": 1.0}, {"model": "other"}, {"request": {"top_p": 0.1}}):
            remote(served.url, tmp_path, **changed).replies(questions("a"))
        remote(served.url, tmp_path).replies([JudgeQuestion(system="s", user="a")])
        assert len(served.bodies) == 7
        remote("http://127.0.0.1:9/v1", tmp_path).replies(questions("a"))  # servers move


def test_a_run_that_is_taken_up_again_tells_the_same_costs(tmp_path: Path) -> None:
    with serving(lambda body, number: said("Score: 1")) as served:
        whole = remote(served.url, tmp_path)
        called(whole, "a")
        saved = whole.spent.state()
        called(whole, "a", "b", "c")
        called(whole, "b", "d")
        killed = remote(served.url, tmp_path)
        killed.spent.restore(saved)
        called(killed, "a", "b", "c")
        called(killed, "b", "d")
        assert killed.spent.state() == whole.spent.state() and killed.spent.cost > 0 and len(served.bodies) == 4
    fresh = remote(served.url, tmp_path)
    fresh.spent.restore(None)
    assert fresh.spent.cost == 0


def test_of_several_replies_a_call_gets_its_own(tmp_path: Path) -> None:
    kept = KeptReplies(tmp_path)
    kept.put("a" * 32, Reply(text="first"), PaidBy(run="r", call=1))
    kept.put("a" * 32, Reply(text="second"), PaidBy(run="r", call=5))
    kept.settle()
    again = KeptReplies(tmp_path)
    found = {call: again.get("a" * 32, PaidBy(run="r", call=call)) for call in (1, 3, 5)}
    assert {call: (one[0].text, one[1]) for call, one in found.items() if one} == {
        1: ("first", True),
        3: ("first", False),
        5: ("second", True),
    }


def test_a_line_that_was_cut_off_or_changed_is_no_reply(tmp_path: Path) -> None:
    kept, payer = KeptReplies(tmp_path), PaidBy(run="r", call=0)
    names = [letter * 32 for letter in "abcd"]
    for name in names:
        kept.put(name, Reply(text=f"of {name[0]}"), payer)
    kept.settle()
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    path.write_bytes(
        lines[0].replace(b"of a", b"of x") + b"e" * 32 + lines[1][32:] + b"\x00\xff\n" + lines[2] + lines[3][:-9]
    )
    again = KeptReplies(tmp_path)
    there = {name[0]: again.get(name, payer) is not None for name in [*names, "e" * 32]}
    assert there == {"a": False, "b": False, "c": True, "d": False, "e": False}
    path.unlink()
    assert again.get(names[2], payer) is None
    again.put(names[2], Reply(text="new"), payer)
    assert again.get(names[2], payer) == (Reply(text="new"), True)
    again.settle()


def test_a_reply_is_kept_as_soon_as_it_is_there(tmp_path: Path) -> None:
    """A run that is killed while others are waited for has it."""
    with serving(lambda body, number: Answer(body=FINE.body, hang_s=0 if number == 1 else 20)) as served:
        judge = remote(served.url, tmp_path, in_flight=1, attempts=1, timeout_s=0.6)
        asking = threading.Thread(target=judge.replies, args=(questions("a", "b"),))
        asking.start()
        while len(served.bodies) < 2:
            time.sleep(0.01)
        other = remote(served.url, tmp_path)
        assert isinstance(called(other, "a")[0], Reply) and len(served.bodies) == 2
        asking.join()


def test_what_it_may_cost_ends_the_asking(tmp_path: Path) -> None:
    with serving(lambda body, number: said("Score: 1")) as served:
        judge = remote(served.url, tmp_path, in_flight=1, max_cost=6.0)  # a reply costs 2
        found = called(judge, *"abcde")
        assert [isinstance(one, Reply) for one in found] == [True] * 3 + [False] * 2 and judge.over
        assert isinstance(found[4], NoReply) and "max_cost" in found[4].why
        found = called(judge, *"abf")
        assert [isinstance(one, Reply) for one in found] == [True, True, False] and len(served.bodies) == 3
        more = remote(served.url, tmp_path, in_flight=1, max_cost=60.0)
        more.spent.restore({**judge.spent.state(), "calls": 0, "tokens_in": 0, "tokens_out": 0})
        assert all(isinstance(one, Reply) for one in called(more, *"abcde")) and len(served.bodies) == 5
        assert more.spent.cost == pytest.approx(10.0)
