"""An OpenAI-compatible endpoint, asked many questions at a time.

    POST {url}/chat/completions        {"model": ..., "messages": [...], "max_tokens": ..., "temperature": ...}

What may pass is tried again: no connection, no answer in time, status 408, 409, 425, 429 and from 500 on, an answer
that is no JSON; the waits double from a second, with a share drawn at random, and `Retry-After` is kept to, up to
`longest_wait_s`. Other refusals are not. Where nothing was answered and enough was refused, or so many questions in a
row failed by what does not lie in them, the rest is not sent. The key stands in the header of a request and nowhere
else: it is taken out of all that the endpoint says.
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import os
import random
import time
import urllib.request
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Thread
from typing import Any, TypeVar
from urllib.parse import urlsplit

import aiohttp

from lifecycle.errors import UserError
from lifecycle.rewards.judge.question import JudgeQuestion, NoReply, Outcome, Reply
from lifecycle.rewards.judge.settings import JudgeKeys

T = TypeVar("T")
AGAIN = (408, 409, 425, 429)
HOPELESS = (401, 403, 404, 405)
"""What another question would be answered as well: a wrong key, model or address."""
CUT_OFF = ("length", "max_tokens", "model_length", "content_filter", "error")
"""Reasons of an end that is none."""
LARGEST = 4 << 20
"""Bytes of an answer."""
SHOWN = 300
"""Characters of an answer that are told."""
FIRST_WAIT_S = 1.0
FEWEST_FAILED = 8
"""Questions without a reply, where none has one or in a row, from which on the rest is not sent; with more requests at
a time, as many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Refused:
    """Of one request. again: whether it may pass. after_s: how long the endpoint asks to wait."""

    why: str
    again: bool
    hopeless: bool = False
    after_s: float | None = None


class Endpoint:
    """Raises UserError where the key is not there."""

    def __init__(self, keys: JudgeKeys) -> None:
        assert keys.url is not None and keys.model is not None
        self._keys, self._key = keys, _key(keys.key_from)
        self.url = f"{keys.url.rstrip('/')}/chat/completions"
        self._proxy = _proxy(self.url)

    def replies(self, questions: Sequence[JudgeQuestion], note: Callable[[int, Reply], bool]) -> list[Outcome | None]:
        """The outcome of each question. note: is given each reply as it comes, with the number of its question; where
        it returns False, no further request is sent: None for the questions that are left."""
        return _in_a_thread(self._replies(questions, note))

    async def _replies(
        self, questions: Sequence[JudgeQuestion], note: Callable[[int, Reply], bool]
    ) -> list[Outcome | None]:
        call = _Call(len(questions), enough=max(FEWEST_FAILED, self._keys.in_flight))
        connector = aiohttp.TCPConnector(limit=self._keys.in_flight)
        async with aiohttp.ClientSession(connector=connector) as session:

            async def work() -> None:
                for number in call.numbers:
                    outcome = await self._tried(session, questions[number], call)
                    call.note(number, outcome)
                    if isinstance(outcome, Reply) and not note(number, outcome):
                        call.ended = True

            await asyncio.gather(*(work() for _ in range(min(self._keys.in_flight, len(questions)))))
        return call.outcomes

    async def _tried(self, session: aiohttp.ClientSession, question: JudgeQuestion, call: _Call) -> Outcome:
        attempt = 1
        while isinstance(found := await self._once(session, question), _Refused):
            if not found.again or attempt == self._keys.attempts or call.ended:
                return NoReply(why=self._hidden(found.why), passing=found.again, hopeless=found.hopeless)
            wait_s = FIRST_WAIT_S * 2 ** (attempt - 1) * random.SystemRandom().uniform(0.5, 1.0)
            await asyncio.sleep(min(max(wait_s, found.after_s or 0.0), self._keys.longest_wait_s))
            attempt += 1
        return found

    async def _once(self, session: aiohttp.ClientSession, question: JudgeQuestion) -> Reply | _Refused:
        body = {"model": self._keys.model, "messages": question.messages, **self._keys.sampling}
        headers = {"User-Agent": "lifecycle"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        limit = aiohttp.ClientTimeout(total=self._keys.timeout_s)
        try:
            async with session.post(
                self.url, json=body, headers=headers, timeout=limit, allow_redirects=False, proxy=self._proxy
            ) as response:
                content = await _read(response)
                after_s = _seconds(response.headers.get("Retry-After"))
        except TimeoutError:
            return _Refused(why=f"no answer in {self._keys.timeout_s:g} s (stage.judge.timeout_s)", again=True)
        except (aiohttp.ClientError, OSError) as error:
            return _Refused(why=f"{type(error).__name__}: {error}", again=True)
        if content is None:
            return _Refused(why=f"status {response.status}, an answer of more than {LARGEST:,} bytes", again=False)
        text = self._hidden(content.decode("utf-8", "replace"))  # before any of it is cut off
        if response.status != 200:
            again = response.status in AGAIN or response.status >= 500
            hopeless = response.status in HOPELESS
            return _Refused(why=_said(response.status, text), again=again, hopeless=hopeless, after_s=after_s)
        return self._reply(question, text) or _Refused(why=_said(200, text), again=_may_pass(text))

    def _reply(self, question: JudgeQuestion, text: str) -> Reply | None:
        """The first choice of an answer; None where the answer has none."""
        found = _json(text)
        try:
            choice = found["choices"][0]
            content, ended = choice["message"].get("content"), choice.get("finish_reason")
        except (KeyError, IndexError, TypeError, AttributeError):  # of another form
            return None
        if content is not None and not isinstance(content, str):
            return None
        usage = found.get("usage")
        used = usage if isinstance(usage, dict) else {}
        return Reply(
            text=self._hidden(content or ""),
            whole=content is not None and ended not in CUT_OFF,
            tokens_in=_count(used.get("prompt_tokens")) or about(question.system + question.user),
            tokens_out=_count(used.get("completion_tokens")) or about(content or ""),
        )

    def _hidden(self, text: str) -> str:
        return text.replace(self._key, "[the key]") if self._key else text


class _Call:
    """Questions of one call: the numbers that are still to be asked, and what came of the others."""

    def __init__(self, count: int, *, enough: int) -> None:
        self.outcomes: list[Outcome | None] = [None] * count
        self.numbers = self._left(count)
        self.ended = False
        self._enough, self._failed, self._in_a_row, self._answered = enough, 0, 0, False

    def _left(self, count: int) -> Iterator[int]:
        for number in range(count):
            if self.ended:
                return
            yield number

    def note(self, number: int, outcome: Outcome) -> None:
        """Of a question; where nothing is answered, the rest is left."""
        self.outcomes[number] = outcome
        if isinstance(outcome, Reply):
            self._answered, self._in_a_row = True, 0
            return
        self._failed, self._in_a_row = self._failed + 1, self._in_a_row + outcome.passing
        silent = not self._answered and (outcome.hopeless or self._failed >= self._enough)
        if silent or self._in_a_row >= self._enough:
            self.ended = True
            rest = NoReply(why=f"not asked, as {self._failed} questions before it had no reply", passing=True)
            self.outcomes = [rest if one is None else one for one in self.outcomes]


async def _read(response: aiohttp.ClientResponse) -> bytes | None:
    """All of an answer; None of one that is too large."""
    parts, size = list[bytes](), 0
    async for part in response.content.iter_any():
        parts.append(part)
        size += len(part)
        if size > LARGEST:
            return None
    return b"".join(parts)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # no JSON, or a tower of lists
        return None


def _may_pass(text: str) -> bool:
    """Whether an answer of status 200 without a choice may be another one the next time: some endpoints put an error
    into it, with its code."""
    found = _json(text)
    error = found.get("error") if isinstance(found, dict) else None
    code = error.get("code") if isinstance(error, dict) else None
    return not (isinstance(code, int) and 400 <= code < 500 and code not in AGAIN)


def _said(status: int, text: str) -> str:
    """Status and beginning of an answer, in one line."""
    return f"status {status}: {' '.join(text[: 4 * SHOWN].split())[:SHOWN] or '(an empty answer)'}"


def about(text: str) -> int:
    """Tokens of a text, where nothing says how many: one for four letters."""
    return -(-len(text) // 4)


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 40 else 0


def _seconds(value: str | None) -> float | None:
    """Of a header `Retry-After`: seconds, or a date; None where it is neither."""
    if value is None:
        return None
    if value.strip().isascii() and value.strip().isdigit():
        return float(value.strip()[:9])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError, OSError):
        return None


def _key(name: str | None) -> str:
    """The key in an environment variable, which is never told."""
    if name is None:
        return ""
    key = os.environ.get(name, "").strip()
    if not key:
        raise UserError(
            f"stage.judge.key_from names the environment variable {name}, which is not set here: type "
            f"export {name}=... before the command, or stage.judge.key_from=null for an endpoint without keys"
        )
    if not (key.isascii() and key.isprintable()):
        raise UserError(f"the environment variable {name} (stage.judge.key_from) holds signs that no key has")
    return key


def _proxy(url: str) -> str | None:
    """That the environment names for an address. aiohttp would find it by itself, and take a password from ~/.netrc
    with it, in place of the key."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    near = host in ("localhost", "127.0.0.1", "::1") or urllib.request.proxy_bypass(host)
    found = None if near else urllib.request.getproxies().get(parts.scheme)
    return found if found and found.startswith("http") else None


def _in_a_thread(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine, run in a thread of its own: that of a notebook has a loop already. It is cancelled
    where the caller is interrupted, and so is what it has begun where it fails."""
    runner, found = asyncio.Runner(loop_factory=asyncio.new_event_loop), Future[T]()
    loop = runner.get_loop()

    def run() -> None:
        with runner:
            try:
                found.set_result(runner.run(work))
            except BaseException as error:  # handed to the caller
                found.set_exception(error)

    def cancel() -> None:
        for task in asyncio.all_tasks(loop):
            task.cancel()

    thread = Thread(target=run, name="ask-judge", daemon=True)
    thread.start()
    try:
        return found.result()
    finally:
        if not found.done():
            loop.call_soon_threadsafe(cancel)
        thread.join()
