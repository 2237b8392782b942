"""The scoring pass gives the numbers of the rollout; vLLM's answers become a rollout with the mismatch in it."""

import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from tests.rollout.sampled import CONFIG, prompts, settings
from tests.rollout.test_engine import OPTIONS
from tests.rollout.vllm_stand_in import stand_in

from lifecycle.batch import Rollout
from lifecycle.errors import UserError
from lifecycle.losses import token_logprobs
from lifecycle.model import Decoder, build
from lifecycle.model import scoring as passes
from lifecycle.model.huggingface import export
from lifecycle.rollout import Sampling, generate
from lifecycle.rollout.sampling import score as scoring
from lifecycle.rollout.sampling.score import score, score_rollout
from lifecycle.rollout.vllm import VllmEngine
from lifecycle.tokenizer.tokenizer import train_bpe


@pytest.fixture(scope="module")
def model() -> Decoder:
    return build(CONFIG, seed=1)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_scoring_finds_what_sampling_wrote(
    model: Decoder, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    sampling = settings(**options)
    rollout = generate(model, prompts(5), sampling, seed=0)
    drawn = [rollout.completion(row) for row in range(len(rollout))]
    for positions, logits in ((passes.POSITIONS, scoring.LOGITS), (70, 5 * CONFIG.vocab), (1, 1)):
        monkeypatch.setattr(passes, "POSITIONS", positions)
        monkeypatch.setattr(scoring, "LOGITS", logits)
        for row, found in enumerate(score(model, rollout.prompts, drawn, sampling)):
            held = (rollout.logprobs, rollout.full_logprobs, rollout.entropy)
            for ours, theirs in zip(found[:3], held, strict=True):
                torch.testing.assert_close(ours, theirs[row][rollout.sampled[row]], atol=1e-5, rtol=1e-5)
            sets = rollout.rows([row]).kept_of(rollout.sampled[[row]])
            assert torch.equal(found.kept.ids, sets.ids) and torch.equal(found.kept.offsets, sets.offsets)


def exact(kind: Decoder, rollout: Rollout, sampling: Sampling) -> torch.Tensor:
    """(N, T) by double precision, one token at a time, over the ids that the rollout lists."""
    whole, found = deepcopy(kind).double(), torch.zeros(rollout.token_ids.shape)
    for row, prompt in enumerate(rollout.prompts):
        ids = torch.tensor([prompt + rollout.completion(row)])
        with torch.no_grad():
            logits = whole.logits(whole(ids, torch.arange(ids.shape[1])[None]))[0]
        for place in range(int(rollout.length[row])):
            draw = row * rollout.token_ids.shape[1] + place
            start, stop = rollout.kept.offsets[draw : draw + 2].tolist()
            z = logits[len(prompt) - 1 + place] / sampling.temperature
            kept = rollout.kept.ids[start:stop].long() if stop > start else torch.arange(kind.config.vocab)
            token = int(rollout.token_ids[row, place])
            assert token in kept
            found[row, place] = z[token] - z[kept].logsumexp(0)
    return found


@pytest.mark.parametrize("options", [{"top_k": 10}, {"top_p": 0.6, "temperature": 0.8}, {"min_p": 0.2}, {}], ids=str)
def test_other_weights_are_scored_under_the_samplers_own_sets(model: Decoder, options: dict[str, Any]) -> None:
    sampling, stops = settings(**options, samples=2), (1, 2, 3, 4, 5)
    rollout = generate(model, prompts(4), replace(sampling, stop_ids=stops), seed=0)
    reference, policy = build(CONFIG, seed=7), deepcopy(model)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=0.02)
    for kind in (model, reference, policy, policy):
        scored, wanted = score_rollout(kind, rollout, sampling), exact(kind, rollout, sampling)
        torch.testing.assert_close(scored.logprobs, wanted, atol=2e-5, rtol=1e-5)
        logp = trained(kind, rollout, sampling)
        torch.testing.assert_close(logp.detach(), wanted[rollout.sampled], atol=2e-5, rtol=1e-5)
        if kind is policy:
            optimizer.zero_grad()
            logp.mean().backward()
            optimizer.step()
    own = exact(policy, rollout, sampling)
    assert rollout.logprobs.shape == own.shape and not torch.allclose(rollout.logprobs, own, atol=0.1)


def trained(kind: Decoder, rollout: Rollout, sampling: Sampling) -> torch.Tensor:
    """Log-probabilities of all sampled tokens with their gradients, as a stage computes them."""
    hidden = []
    for row, prompt in enumerate(rollout.prompts):
        ids = torch.tensor([prompt + rollout.completion(row)[:-1]])
        hidden.append(
            kind(ids, torch.arange(ids.shape[1])[None])[0, len(prompt) - 1 :][
                rollout.sampled[row, : int(rollout.length[row])]
            ]
        )
    logp, _ = token_logprobs(
        torch.cat(hidden),
        kind.head_weight,
        rollout.token_ids[rollout.sampled],
        temperature=sampling.temperature,
        kept=rollout.kept_of(rollout.sampled),
    )
    return logp


def test_what_a_tool_wrote_exists_and_is_not_scored(model: Decoder) -> None:
    sampling = settings(top_k=10)
    rollout = generate(model, prompts(3), sampling, seed=0)
    whole = score_rollout(model, rollout, sampling)
    sampled = rollout.exists.clone()
    sampled[:, 3:6] = False
    mixed = replace(rollout, sampled=sampled)
    scored = score_rollout(model, mixed, sampling)
    assert mixed.completion(0) == rollout.completion(0) and mixed.length.tolist() == rollout.length.tolist()
    assert torch.equal(scored.logprobs[sampled], whole.logprobs[sampled]) and not scored.logprobs[~sampled].any()
    again = Rollout.of_state(mixed.state()).rows([2, 0])
    assert torch.equal(again.sampled, sampled[[2, 0]]) and again.completion(1) == mixed.completion(0)
    assert trained(model, mixed, sampling).shape == (int(sampled.sum()),)


@pytest.fixture
def vllm(model: Decoder, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """vLLM, as far as it is asked."""
    module = stand_in(model)
    monkeypatch.setitem(sys.modules, "vllm", module)
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
    kept = rollout.kept_of(rollout.sampled).mask(slice(0, int(rollout.sampled.sum())), CONFIG.vocab)
    assert bool(kept.gather(1, rollout.token_ids[rollout.sampled][:, None]).all()) and bool((kept.sum(1) == 10).all())


@pytest.mark.parametrize("options", [*OPTIONS, {"min_p": 0.1, "top_k": 5}, {"top_k": 8, "top_p": 0.7}], ids=str)
def test_a_setting_means_to_vllm_what_it_means_here(
    model: Decoder, vllm: ModuleType, tmp_path: Path, options: dict[str, Any]
) -> None:
    rollout = VllmEngine(tmp_path, scorer=model).generate(prompts(5), settings(**options), seed=0)
    assert rollout.meta["mismatch"]["max"] < 2e-5
    if (
        options.get("temperature") == 0
    ):  # where theirs are of temperature 1, and the rollout's are of what was drawn from
        assert float(rollout.logprobs.abs().max()) < 1e-5 and float(rollout.full_logprobs.min()) < -0.01


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"temperature": 2.5}, "temperature is 2.5; vLLM draws at 0 and from 0.01 to 2.0"),
        ({"temperature": 0.001}, "temperature is 0.001"),
        ({"min_p": 0.1, "top_p": 0.9}, "min_p is 0.1 beside top_p=0.9"),
        ({"banned_ids": tuple(range(1025))}, "1025 tokens are banned"),
        ({"stop_strings": ("a",)}, "the model's folder has no tokenizer"),
    ],
    ids=str,
)
def test_settings_that_vllm_reads_otherwise_are_refused(
    model: Decoder, vllm: ModuleType, tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    engine, letters = VllmEngine(tmp_path, scorer=model), SimpleNamespace(decode=lambda ids: "")
    with pytest.raises(UserError, match=f"vLLM cannot sample so.*stage.engine=own(.|\\n)*{said}"):
        engine.generate([[1]], settings(**options), seed=0, tokenizer=letters)


@pytest.mark.parametrize("reason", ["abort", "error", "repetition"])
def test_a_completion_that_vllm_gave_up_is_none(
    model: Decoder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, reason: str
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", stand_in(model, ended=reason))
    with pytest.raises(RuntimeError, match=f"with '{reason}', not with 'stop' or 'length'"):
        VllmEngine(tmp_path, scorer=model).generate([[1]], settings(), seed=0)


def test_other_weights_are_taken_over_when_told_and_only_then(model: Decoder, vllm: ModuleType, tmp_path: Path) -> None:
    engine = VllmEngine(tmp_path, scorer=model)
    with pytest.raises(UserError, match=r"has version 0 of the weights, and version 1 is asked for.*refresh\(folder"):
        engine.generate([[1]], settings(), seed=0, weights_version=1)
    engine.refresh(tmp_path / "next", weights_version=1)
    assert vllm.told == [("reload_weights", {"weights_path": str(tmp_path / "next")}), ("reset_prefix_cache", {})]
    assert engine.generate([[1]], settings(), seed=0, weights_version=1).weights_version == 1


def test_weights_that_vllm_has_not_read_are_not_scored(vllm: ModuleType, tmp_path: Path) -> None:
    kind = build(CONFIG, seed=1)
    engine = VllmEngine(tmp_path, scorer=kind)
    kind.load_state_dict(kind.state_dict())
    with pytest.raises(UserError, match="have changed since vLLM read its own"):
        engine.generate([[1]], settings(), seed=0)
    engine.refresh(tmp_path, weights_version=0)
    assert len(engine.generate([[1]], settings(), seed=0)) == 1


def test_vllm_computes_in_the_precision_of_the_scorer(model: Decoder, vllm: ModuleType, tmp_path: Path) -> None:
    VllmEngine(tmp_path, scorer=model, slots=7, prefill_chunk=5)
    assert (vllm.settings["dtype"], vllm.settings["skip_tokenizer_init"]) == ("float32", True)
    assert (vllm.settings["max_num_seqs"], vllm.settings["max_num_batched_tokens"]) == (7, 7)
    with torch.autocast("cpu", torch.bfloat16):
        VllmEngine(tmp_path, scorer=model)
    assert vllm.settings["dtype"] == "bfloat16"


def test_a_soft_cap_that_vllm_leaves_out_is_refused(vllm: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"logit_softcap is 30\.0, which vLLM's llama leaves out"):
        VllmEngine(tmp_path, scorer=build(replace(CONFIG, logit_softcap=30.0), seed=1))


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
    tokenizer = train_bpe(["def return the value of it " * 5] * 20, vocab_size=320, digits=1)
    sizes = replace(CONFIG, head_dim=64, width=128, heads=2, kv_heads=1, ffn_width=256, vocab_size=320, init_std=0.1)
    kind, other = (build(sizes, seed=seed, device=torch.device("cuda")) for seed in (1, 2))
    export(kind, tmp_path / "first", tokenizer=tokenizer)
    export(other, tmp_path / "next", tokenizer=tokenizer)
    engine = VllmEngine(tmp_path / "first", scorer=kind, memory_share=0.2)
    for version in (0, 1):
        for options in ({"top_k": 10}, {"temperature": 0.0}, {"min_p": 0.05, "top_k": 20}, {"top_p": 0.9}):
            rollout = engine.generate(prompts(4), settings(**options), seed=0, weights_version=version)
            print(version, options, rollout.meta)
            assert rollout.meta["mismatch"]["mean"] < 0.01
        kind.load_state_dict(other.state_dict())
        engine.refresh(tmp_path / "next", weights_version=1)
