"""A model of ours as judge: frozen, greedy, by its own tokenizer and chat template; all questions of a call at once."""

from __future__ import annotations

from collections.abc import Sequence

from lifecycle.errors import UserError
from lifecycle.rewards.judge.question import JudgeQuestion, NoReply, Outcome, Reply
from lifecycle.rewards.judge.settings import JudgeKeys
from lifecycle.rewards.judge.spending import Spending
from lifecycle.rollout.drawing import DrawingKeys
from lifecycle.rollout.engine import generate
from lifecycle.rollout.user_prompts import UserPrompt, encode
from lifecycle.stages.beside.frozen import FrozenNetwork
from lifecycle.stages.run.setup import Setup
from lifecycle.stages.step.collectives import many_ranks


class LocalJudge:
    """The model that `stage.judge.model` names. Raises UserError where that is null. It asks for no price."""

    def __init__(self, keys: JudgeKeys, setup: Setup) -> None:
        if "judge" not in setup.asked or keys.max_new_tokens is None:
            raise UserError(
                "stage.judge.url is null, so that a local model judges: type stage.judge.model=RUN (or a Hugging Face "
                "folder) and stage.judge.max_new_tokens=N, or the address of an endpoint, stage.judge.url=http://.../v1"
            )
        self._keys, self._model = keys, setup.asked["judge"]
        self.network = FrozenNetwork(config=self._model.config, read=self._model.weights.read, setup=setup)
        self.spent = Spending(price_in=0.0, price_out=0.0)
        self._drawing = DrawingKeys(
            max_new_tokens=keys.max_new_tokens,
            temperature=0.0,
            top_k=None,
            top_p=None,
            min_p=None,
            repetition_penalty=1.0,
            stop=[],
        )

    @property
    def place(self) -> str:
        """Its name."""
        return self._model.name

    def replies(self, questions: Sequence[JudgeQuestion]) -> list[Outcome]:
        """The outcome of each question; one that the model has no room for has no reply."""
        once = list(dict.fromkeys(questions))
        prompts = [UserPrompt(id=str(n), text=None, messages=tuple(q.messages)) for n, q in enumerate(once)]
        ids = encode(prompts, self._model.tokenizer, chat=True, system=None, begin=False)
        most = self._model.config.max_positions
        fitting = [n for n, one in enumerate(ids) if len(one) < most]
        found: dict[JudgeQuestion, Outcome] = {
            question: NoReply(why=f"the question has {len(ids[n])} tokens, and {self.place} has {most} positions")
            for n, question in enumerate(once)
        }
        for n, reply in zip(fitting, self._answered([ids[n] for n in fitting]), strict=True):
            found[once[n]] = reply
        return [found[question] for question in questions]

    def _answered(self, prompts: Sequence[Sequence[int]]) -> list[Reply]:
        if not prompts and not many_ranks():
            return []
        tokenizer, vocab = self._model.tokenizer, self._model.config.vocab
        rollout = generate(
            self.network.network,
            prompts,
            self._drawing.sampling(tokenizer, self._model.end_ids, vocab, samples=1),
            seed=0,
            tokenizer=tokenizer,
            slots=self._keys.in_flight,
        )
        ended, lengths = [reason == "stop_id" for reason in rollout.stop_reason], rollout.length.tolist()
        replies = list[Reply]()
        for text, whole, prompt, length in zip(rollout.text, ended, prompts, lengths, strict=True):
            self.spent.add(len(prompt), length)
            replies.append(Reply(text=text, whole=whole, tokens_in=len(prompt), tokens_out=length))
        return replies
