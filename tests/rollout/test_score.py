"""The scoring pass gives the numbers of the rollout; vLLM's answers become a rollout with the mismatch in it."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from tests.rollout.test_engine import CONFIG, OPTIONS, prompts, settings

from lifecycle.errors import UserError
from lifecycle.model import Decoder, build
from lifecycle.rollout import Sampling, generate
from lifecycle.rollout.score import score
from lifecycle.rollout.vllm import VllmEngine


@pytest.fixture(scope="module")
def model() -> Decoder:
    return build(CONFIG, seed=1)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_scoring_finds_what_sampling_wrote(model: Decoder, options: dict[str, Any]) -> None:
    sampling = settings(**options)
    rollout = generate(model, prompts(5), sampling, seed=0)
    for row, prompt in enumerate(rollout.prompts):
        found, mask = score(model, prompt, rollout.completion(row), sampling), rollout.mask[row]
        held = (rollout.logprobs, rollout.full_logprobs, rollout.entropy, rollout.threshold)
        for ours, theirs in zip(found, held, strict=True):
            torch.testing.assert_close(ours, theirs[row][mask], atol=1e-5, rtol=1e-5)


def stand_in(model: Decoder, shift: float) -> ModuleType:
    """A module with the part of vLLM's interface that is used, drawing with our engine; log-probabilities shifted."""

    class LLM:
        def __init__(self, **settings: Any) -> None:
            assert settings["logprobs_mode"] == "processed_logprobs"

        def generate(self, asked: list[dict[str, list[int]]], parameters: list[Any], use_tqdm: bool) -> list[Any]:
            return [self.one(a["prompt_token_ids"], p) for a, p in zip(asked, parameters, strict=True)]

        def one(self, prompt: list[int], p: Any) -> Any:
            sampling = Sampling(max_new_tokens=p.max_tokens, top_k=p.top_k or None, stop_ids=tuple(p.stop_token_ids))
            rollout = generate(model, [prompt], sampling, seed=p.seed)
            ids, values = rollout.completion(0), rollout.logprobs[0].tolist()
            stopped = rollout.stop_reason[0] == "stop_id"
            logprobs = [{i: SimpleNamespace(logprob=v + shift)} for i, v in zip(ids, values, strict=True)]
            output = SimpleNamespace(
                token_ids=tuple(ids),
                logprobs=logprobs,
                finish_reason="stop" if stopped else "length",
                stop_reason=ids[-1] if stopped else None,
            )
            return SimpleNamespace(outputs=[output])

    module = ModuleType("vllm")
    module.LLM, module.SamplingParams = LLM, SimpleNamespace  # type: ignore[attr-defined]
    return module


def test_what_vllm_answers_becomes_a_rollout(model: Decoder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "vllm", stand_in(model, shift=0.25))
    sampling = settings(top_k=10, stop_ids=(1, 2, 3, 4), samples=2)
    asked = [*prompts(4), [1] * 60]
    rollout = VllmEngine(tmp_path, scorer=model).generate(asked, sampling, seed=0, prompt_ids=[9, 8, 7, 6, 5])
    assert rollout.prompt_id.tolist() == [9, 9, 8, 8, 7, 7, 6, 6, 5, 5] and rollout.sample.tolist() == [0, 1] * 5
    assert rollout.meta["mismatch"]["mean"] == pytest.approx(0.25, abs=1e-4)
    assert rollout.meta["mismatch"]["max"] == pytest.approx(0.25, abs=1e-4)
    assert len(set(rollout.seed.tolist())) == 10 and set(rollout.stop_reason) <= {"stop_id", "length", "capacity"}
    assert "capacity" in rollout.stop_reason
    assert bool((rollout.full_logprobs >= rollout.threshold)[rollout.mask].all())


def test_without_vllm_the_error_says_what_to_install(
    model: Decoder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match=r"lifecycle\[vllm\]"):
        VllmEngine(tmp_path, scorer=model)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_vllm_and_our_model_agree(tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    from lifecycle.model.huggingface import export

    kind = build(CONFIG, seed=1, device=torch.device("cuda"))
    export(kind, tmp_path, tokenizer=None, dtype="fp32")
    rollout = VllmEngine(tmp_path, scorer=kind, dtype="float32").generate(prompts(4), settings(top_k=10), seed=0)
    print(rollout.meta)
    assert rollout.meta["mismatch"]["mean"] < 0.01
