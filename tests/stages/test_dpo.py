"""Laws of preference optimisation through the stage: what equal models give, and that no layout changes a step."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import yaml
from tests.stages.test_step import ADAMW, MODEL, Batches, Kept, optimization, stage, trainer_of
from torch import Tensor
from torch.nn import functional as F

from lifecycle.batch import Example, Pair, PairBatch, UnpairedBatch
from lifecycle.config.signature import Walk
from lifecycle.data.stream.packing import Packing, Piece, Row, best_fit
from lifecycle.errors import UserError
from lifecycle.model import Decoder, DocumentMask, build
from lifecycle.model.lora import Adapter
from lifecycle.stages.dpo import Dpo
from lifecycle.stages.preference.answers import mismatched
from lifecycle.stages.preference.cached import answer_keys
from lifecycle.stages.preference.reference import WithoutAdapter
from lifecycle.stages.preference.settings import PreferenceKeys, faults
from lifecycle.stages.run.setup import ParentWeights

STEPS, LENGTH = 3, 40
CONF: dict[str, Any] = yaml.safe_load((Path(__file__).parents[2] / "conf/stage/_preference.yaml").read_text())
ADAPTER = Adapter(
    rank=2, alpha=4.0, dropout=0.0, targets="all", rslora=False, dora=False, bits=None, lr_ratio=1.0, merge=False
)
KEYS = {name: CONF[name] for name in PreferenceKeys.__dataclass_fields__}


def parent() -> Decoder:
    return build(MODEL, seed=1)


def dpo(
    loss: Any = "sigmoid",
    *,
    lr: float = 1e-3,
    cache: Path = Path(),
    sha256: str = "parent",
    bf16: bool = False,
    adapter: Adapter | None = None,
    **changed: Any,
) -> Dpo:
    """The stage with the keys of its YAML, some changed, on the weights of the parent."""
    walk = Walk()
    keys = walk.construct(PreferenceKeys, KEYS | {"loss": loss} | changed, ())
    assert not walk.faults
    weights = ParentWeights(read=lambda: parent().state_dict(), sha256=lambda: sha256, cache=lambda: cache)
    return Dpo(
        model=MODEL,
        optimization=optimization(lr),
        preference=keys,
        setup=replace(stage().setup_facts, parent=weights, read_weights=weights.read, bf16=bf16, adapter=adapter),
    )


def pairs(step: int) -> list[Piece]:
    """Six pairs of two sources, whose prompts and answers have different lengths."""
    rng, made = np.random.default_rng(step), []
    for number, (asked, good, bad) in enumerate(((3, 4, 2), (2, 6, 6), (5, 3, 9), (2, 5, 1), (4, 7, 3), (3, 2, 2))):
        prompt = rng.integers(1, 64, asked).astype(np.int32)
        sides = [np.append(prompt, rng.integers(1, 64, n)).astype(np.int32) for n in (good, bad)]
        chosen, rejected = (Example(ids=ids, trained=np.arange(len(ids)) >= asked) for ids in sides)
        made.append(Piece(Pair(prompt=prompt, chosen=chosen, rejected=rejected), number % 2))
    return made


def singles(step: int, *, bad: bool = True) -> list[Piece]:
    """Both sides of the pairs, each alone: good, and good or bad."""
    made = []
    for piece in pairs(step):
        assert isinstance(piece.item, Pair)
        for side, good in ((piece.item.chosen, True), (piece.item.rejected, not bad)):
            made.append(Piece(replace(side, wanted=good), piece.source))
    return made


def rows_of(pieces: Sequence[Piece], view: str, length: int = LENGTH) -> Any:
    """Packed as the data engine packs them."""
    return laid(best_fit(list(pieces), length), view, length)


def laid(rows: Sequence[Row], view: str, length: int = LENGTH) -> Any:
    packing = Packing(view=view)
    return packing.batch(torch.from_numpy(packing.arrays(list(rows), length)).long())


def alone(pieces: Sequence[Piece], view: str) -> Any:
    """Every item in a row of its own, padded, and a row of padding alone."""
    rows = [Row([piece], LENGTH - piece.positions) for piece in pieces]
    return laid([*rows, Row([], LENGTH)], view)


def apart(batch: Any) -> list[Any]:
    return [batch.rows(row, row + 1) for row in range(len(batch.tokens.labels))]


def train(made: Dpo, steps: Sequence[list[Any]], folder: Path) -> dict[int, dict[str, float]]:
    logger = Kept()
    trainer_of(len(steps), folder, logger=logger).fit(made, Batches(cast(Any, steps)))
    return logger.rows


def same(one: Dpo, other: Dpo) -> None:
    torch.testing.assert_close(one.network.state_dict(), other.network.state_dict(), rtol=1e-4, atol=2e-5)


# -- equal models


@pytest.mark.parametrize("layout", [lambda p: rows_of(p, "preference"), lambda p: alone(p, "preference")])
def test_dpo_is_log_2_where_policy_and_reference_are_equal_packed_and_padded(layout: Any, tmp_path: Path) -> None:
    rows = train(dpo(), [[layout(pairs(0))]], tmp_path)
    assert rows[1]["train/loss"] == pytest.approx(math.log(2), abs=1e-7)
    assert rows[1]["preference/margin"] == rows[1]["preference/kl"] == rows[1]["preference/accuracy"] == 0


@pytest.mark.parametrize(
    ("loss", "value"),
    [
        ("sigmoid_norm", math.log(2)),
        ("ipo", 25.0),
        ("hinge", 1.0),
        ("apo_zero", 1.0),
        ("sppo", 50.0),
        ("aot", math.log(2)),
        ("aot_unpaired", math.log(2)),
    ],
)
def test_other_losses_begin_at_their_constants_too(loss: str, value: float, tmp_path: Path) -> None:
    rows = train(dpo(loss), [[rows_of(pairs(0), "preference")]], tmp_path)
    assert rows[1]["train/loss"] == pytest.approx(value, rel=1e-6)


def test_kto_begins_at_half_of_its_weights(tmp_path: Path) -> None:
    losses = CONF["losses"] | {"kto": {"beta": 0.1, "wanted_weight": 1.5, "unwanted_weight": 0.5}}
    rows = train(dpo("kto", losses=losses), [[rows_of(singles(0), "unpaired")]], tmp_path)
    assert rows[1]["train/loss"] == pytest.approx(0.5) and rows[1]["preference/kl"] == 0


# -- layouts


@pytest.mark.parametrize("loss", ["sigmoid", "orpo", {"apo_zero": 1.0, "nll": 0.5}, "aot", "aot_unpaired", "wpo"])
def test_splitting_ordering_packing_and_padding_never_change_a_step(loss: Any, tmp_path: Path) -> None:
    steps = [pairs(step) for step in range(STEPS)]
    changed = {"loss": "sigmoid", "weighting": "wpo"} if loss == "wpo" else {"loss": loss}
    whole = dpo(**changed)
    rows = train(whole, [[rows_of(items, "preference")] for items in steps], tmp_path)
    layouts = {
        "split": [apart(rows_of(items, "preference")) for items in steps],
        "padded": [[alone(items, "preference")] for items in steps],
        "other order": [[rows_of(items[::-1], "preference")] for items in steps],
        "other rows": [[rows_of(items, "preference", 64)] for items in steps],
    }
    for name, form in layouts.items():
        other = dpo(**changed)
        again = train(other, form, tmp_path / name.replace(" ", ""))
        same(whole, other)
        for step in range(1, STEPS + 1):
            for key in ("train/loss", "train/grad_norm", "preference/margin", "preference/b/chosen_nll"):
                assert again[step].get(key) == pytest.approx(rows[step].get(key), rel=1e-4, abs=1e-6), (name, key)


def test_kto_is_the_same_however_rows_are_split_and_ordered(tmp_path: Path) -> None:
    """Its baseline is of the answers that share a row, which rows of another length change."""
    steps = [rows_of(singles(step, bad=False), "unpaired") for step in range(STEPS)]
    whole, split, turned = (dpo("kto", lr=1e-2) for _ in range(3))
    rows = train(whole, [[batch] for batch in steps], tmp_path / "whole")
    again = train(split, [apart(batch) for batch in steps], tmp_path / "split")
    train(turned, [apart(batch)[::-1] for batch in steps], tmp_path / "turned")
    same(whole, split)
    same(whole, turned)
    assert again[3]["preference/kl"] == pytest.approx(rows[3]["preference/kl"], abs=1e-5)
    assert rows[1]["preference/kl"] == 0 < rows[3]["preference/kl"]  # where all is likelier, so is what is not theirs


def test_an_answer_behind_another_prompt_by_hand() -> None:
    def example(ids: list[int], asked: int) -> Piece:
        made = Example(ids=np.array(ids, np.int32), trained=np.arange(len(ids)) >= asked, wanted=True)
        return Piece(made, 1)

    pieces = [example([1, 2, 3, 11, 12], 3), example([4, 21, 22, 23], 1), example([5, 6, 31], 2)]
    batch: UnpairedBatch = laid([Row(pieces, 1), Row(pieces[:1], 6)], "unpaired", 10)
    made = mismatched(batch).tokens
    assert made.input_ids[0].tolist() == [1, 2, 3, 21, 22, 4, 5, 6, 11, 0]
    assert made.labels[0].tolist() == [-100, -100, 21, 22, 23, 31, -100, 11, 12, -100]
    assert made.document_ids[0].tolist() == [1, 1, 1, 1, 1, 2, 3, 3, 3, 0]
    assert made.position_ids[0].tolist() == [0, 1, 2, 3, 4, 0, 0, 1, 2, 0]
    assert not made.document_ids[1].any() and not made.trained[1].any()  # nobody to change places with
    assert len(mismatched(batch)) == 3 and batch.tokens.input_ids[0].tolist()[:4] == [1, 2, 3, 11]


# -- a plain loop


def plain_logp(model: Decoder, ids: Any, asked: int) -> Tensor:
    """Of the answer behind `asked` tokens, one sequence at a time, without packing."""
    return plain_logps(model, ids, asked).sum()


def plain_logps(model: Decoder, ids: Any, asked: int) -> Tensor:
    """Of each of its tokens."""
    tokens = torch.from_numpy(ids).long()[None]
    logits = model.logits(model(tokens[:, :-1], torch.arange(tokens.shape[1] - 1)[None]))
    return F.log_softmax(logits.float(), -1).gather(2, tokens[:, 1:, None])[0, asked - 1 :, 0]


def test_three_steps_are_those_of_a_plain_loop(tmp_path: Path) -> None:
    made = dpo()
    rows = train(made, [apart(rows_of(pairs(step), "preference")) for step in range(STEPS)], tmp_path)
    policy, reference = parent(), parent()
    decayed = [p for p in policy.parameters() if p.dim() > 1]
    groups: list[dict[str, Any]] = [
        {"params": decayed},
        {"params": [p for p in policy.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=ADAMW.betas, eps=ADAMW.eps, weight_decay=ADAMW.weight_decay)
    for step in range(STEPS):
        losses = []
        for piece in pairs(step):
            assert isinstance(piece.item, Pair)
            ratios = []
            for side in (piece.item.chosen, piece.item.rejected):
                with torch.no_grad():
                    known = plain_logp(reference, side.ids, len(piece.item.prompt))
                ratios.append(plain_logp(policy, side.ids, len(piece.item.prompt)) - known)
            losses.append(-F.logsigmoid(0.1 * (ratios[0] - ratios[1])))
        loss = torch.stack(losses).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        assert rows[step + 1]["train/loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
    torch.testing.assert_close(made.network.state_dict(), policy.state_dict(), rtol=1e-4, atol=2e-5)


# -- a cached reference


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


@pytest.mark.parametrize(("loss", "view"), [("sigmoid", "preference"), ("kto", "unpaired")])
def test_a_cached_reference_says_what_a_live_one_does(loss: str, view: str, tmp_path: Path) -> None:
    made = pairs if view == "preference" else singles
    steps = [[rows_of(made(step), view)] for step in (0, 1, 0)]
    live, cached, found = dpo(loss), *(dpo(loss, reference="cached", cache=tmp_path / "cache") for _ in range(2))
    rows = train(live, steps, tmp_path / "live")
    again = train(cached, steps, tmp_path / "cached")
    same(live, cached)
    assert again[1]["train/loss"] == rows[1]["train/loss"]
    assert again[3]["preference/margin"] == pytest.approx(rows[3]["preference/margin"], rel=1e-4)
    kept = files(tmp_path)
    assert len(kept) == 1 and not cached.state_dict().keys() - live.state_dict().keys()
    found._said = None  # type: ignore[assignment,method-assign]
    train(found, [apart(step[0]) for step in steps], tmp_path / "found")  # in other micro-batches, without being asked
    same(live, found)
    assert files(tmp_path) == kept


def test_an_answer_that_was_not_computed_is_an_error_and_no_computation_by_a_policy_that_has_moved(
    tmp_path: Path,
) -> None:
    class Longer(Batches):
        def whole_run(self) -> Any:
            yield from list(super().whole_run())[:1]

    steps = [[rows_of(pairs(step), "preference")] for step in range(2)]
    made = dpo(reference="cached", cache=tmp_path / "cache")
    with pytest.raises(UserError, match="12 of 12 answers .* begin another with stage.reference=live"):
        trainer_of(2, tmp_path, logger=False).fit(made, Longer(cast(Any, steps)))
    assert made.global_step == 1


def test_a_run_that_goes_on_computes_no_reference_and_says_where_it_was(tmp_path: Path) -> None:
    made = dpo(reference="cached", cache=tmp_path / "cache")
    went_on = Dpo(
        model=MODEL,
        optimization=optimization(1e-3),
        preference=Walk().construct(PreferenceKeys, KEYS | {"reference": "cached"}, ()),
        setup=replace(made.setup_facts, read_weights=None),  # a checkpoint has them
    )
    with pytest.raises(UserError, match="nothing is there, as on another machine .* Put that folder back"):
        train(went_on, [[rows_of(pairs(0), "preference")]], tmp_path)
    assert not files(tmp_path)


def test_a_damaged_reference_is_computed_again_or_named_by_the_run_that_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = [[rows_of(pairs(0), "preference")]]
    first, again, went_on = (dpo(reference="cached", cache=tmp_path / "cache") for _ in range(3))
    train(first, steps, tmp_path / "first")
    (file,) = files(tmp_path / "cache")
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    train(again, steps, tmp_path / "again")
    same(first, again)
    assert f"{file} is damaged" in capsys.readouterr().err and file.read_bytes() == whole
    file.write_bytes(whole[:-1])
    went_on.reference._computes = False  # type: ignore[union-attr]  # a checkpoint has its weights
    with pytest.raises(UserError, match=f"{file.name} are damaged, .* Put copies of them back"):
        train(went_on, steps, tmp_path / "on")


def test_a_reference_is_kept_by_all_that_it_depends_on(tmp_path: Path) -> None:
    batch = rows_of(pairs(0), "preference")
    assert answer_keys(batch) != answer_keys(rows_of(pairs(1), "preference"))
    assert sorted(answer_keys(batch)) == sorted(answer_keys(alone(pairs(0), "preference")))
    shown = replace(batch.tokens, labels=batch.tokens.labels.masked_fill(batch.tokens.position_ids == 3, -100))
    other = PairBatch.of(shown, torch.zeros(shown.labels.shape))
    assert set(answer_keys(batch)) - set(answer_keys(other))  # the same ids, other trained tokens
    for number, changed in enumerate([{}, {"bf16": True}, {"sha256": "another"}, {}]):
        made = dpo(reference="cached", cache=tmp_path / "cache", **changed)  # type: ignore[arg-type]
        train(made, [[batch]], tmp_path / str(number))
    assert len(list((tmp_path / "cache").iterdir())) == 3


def test_wpo_weighs_every_pair_by_what_the_policy_would_write(tmp_path: Path) -> None:
    """The first loss is log 2 times the mean weight, which is computed here one answer at a time."""
    rows = train(dpo(weighting="wpo"), [apart(rows_of(pairs(0), "preference"))], tmp_path)
    weights = []
    for piece in pairs(0):
        assert isinstance(piece.item, Pair)
        means = []
        for side in (piece.item.chosen, piece.item.rejected):
            tokens, asked = torch.from_numpy(side.ids).long()[None], len(piece.item.prompt)
            model = parent()
            logits = model.logits(model(tokens[:, :-1], torch.arange(tokens.shape[1] - 1)[None]))[0, asked - 1 :]
            logp = F.log_softmax(logits.detach().double(), -1)
            own = logp.gather(1, tokens[0, asked:, None])[:, 0]
            means.append(float((own - torch.logsumexp(2 * logp, -1)).mean()))
        weights.append(math.exp(sum(means)))
    assert rows[1]["train/loss"] == pytest.approx(math.log(2) * sum(weights) / len(weights), rel=1e-5)


# -- what is told


def test_metrics_are_means_over_pairs_and_by_source(tmp_path: Path) -> None:
    made = dpo(lr=1e-2)
    rows = train(made, [[rows_of(pairs(0), "preference")]] * 4, tmp_path)
    first, last = rows[1], rows[4]
    assert last["preference/margin"] > 0 and last["preference/accuracy"] > 0.5 and last["preference/kl"] > 0
    assert last["preference/margin"] == pytest.approx(
        last["preference/chosen_reward"] - last["preference/rejected_reward"], abs=1e-6
    )
    sides: list[Any] = [p.item for p in pairs(0)]
    nll = [-float(plain_logp(parent(), p.chosen.ids, len(p.prompt)).detach()) for p in sides]
    tokens = [int(p.chosen.trained[1:].sum()) for p in sides]
    assert first["preference/chosen_logprob"] == pytest.approx(-sum(nll) / 6, rel=1e-5)
    assert first["preference/chosen_nll"] == pytest.approx(sum(nll) / sum(tokens), rel=1e-5)
    assert first["preference/a/chosen_nll"] == pytest.approx(sum(nll[0::2]) / sum(tokens[0::2]), rel=1e-5)
    assert last["preference/margin"] == pytest.approx(
        (last["preference/a/margin"] + last["preference/b/margin"]) / 2, rel=1e-5
    )


def test_the_likelihood_in_a_sum_is_a_mean_over_the_chosen_tokens_of_the_step(tmp_path: Path) -> None:
    chosen = [piece.item for piece in pairs(0) if isinstance(piece.item, Pair)]
    nll = sum(-float(plain_logp(parent(), p.chosen.ids, len(p.prompt)).detach()) for p in chosen)
    tokens = sum(len(p.chosen.ids) - len(p.prompt) for p in chosen)
    rows = train(dpo({"sigmoid": 1.0, "nll": 0.5}), [[rows_of(pairs(0), "preference")]], tmp_path)
    assert rows[1]["train/loss"] == pytest.approx(math.log(2) + 0.5 * nll / tokens, rel=1e-5)


@pytest.mark.parametrize("tail", [1.0, 0.25])
def test_what_is_told_is_of_whole_answers_whatever_the_loss_makes_of_their_tails(tail: float, tmp_path: Path) -> None:
    rows = train(dpo(lr=0.0, tail=tail), [[rows_of(pairs(0), "preference")]], tmp_path)
    sides: list[Any] = [p.item for p in pairs(0)]
    for name in ("chosen", "rejected"):
        logp = [float(plain_logp(parent(), getattr(p, name).ids, len(p.prompt)).detach()) for p in sides]
        assert rows[1][f"preference/{name}_logprob"] == pytest.approx(sum(logp) / 6, rel=1e-5)


def test_the_distance_from_the_reference_is_half_the_mean_square_of_the_log_ratios_of_tokens() -> None:
    made = dpo()
    made.configure_model()
    made.beside.begin(torch.device("cpu"), cast(Any, None))  # type: ignore[union-attr]
    with torch.no_grad():
        made.network.embedding.weight.mul_(1.1)
    batch: PairBatch = rows_of(pairs(0), "preference")
    _, measured = made._loss_sum(batch, DocumentMask.from_ids(batch.tokens.document_ids, kernel="sdpa"))
    squares, tokens = 0.0, 0
    for piece in pairs(0):
        assert isinstance(piece.item, Pair)
        for side in (piece.item.chosen, piece.item.rejected):
            now, then = (
                plain_logps(model, side.ids, len(piece.item.prompt)).detach() for model in (made.network, parent())
            )
            squares, tokens = squares + float((now - then).square().sum()), tokens + len(now)
    assert tokens == 4 + 2 + 6 + 6 + 3 + 9 + 5 + 1 + 7 + 3 + 2 + 2
    assert measured["preference/kl"].tolist() == pytest.approx([squares / 2, tokens], rel=1e-4)


def test_held_out_pairs_give_a_loss_and_an_accuracy() -> None:
    made = dpo()
    made.configure_model()
    assert made.beside is not None
    made.beside.begin(torch.device("cpu"), cast(Any, None))
    batch: PairBatch = rows_of(pairs(0), "preference")
    seen = DocumentMask.from_ids(batch.tokens.document_ids, kernel="sdpa")
    with torch.no_grad():
        tokens = int(batch.tokens.trained.sum())
        assert made.validation_step((batch, seen), 0).tolist() == pytest.approx(
            [6 * math.log(2), 6, 0, 0, 0, tokens], abs=1e-6
        )
        made.network.embedding.weight.mul_(1.1)
        loss, count, right, margin, apart, _ = made.validation_step((batch, seen), 0).tolist()
    assert count == 6 and 0 < right <= 6 and loss != pytest.approx(6 * math.log(2))
    assert margin and apart > 0
    assert made.told({"accuracy": right / 6, "margin": margin / 6, "kl": apart / 6, "kl_of": tokens / 6}, 6) == {
        "accuracy": right / 6,
        "margin": margin / 6,
        "kl": pytest.approx(apart / tokens),
    }


def test_held_out_pairs_of_a_loss_without_reference_have_no_distance_from_one() -> None:
    made = dpo(loss="simpo")
    made.configure_model()
    batch: PairBatch = rows_of(pairs(0), "preference")
    with torch.no_grad():
        seen = DocumentMask.from_ids(batch.tokens.document_ids, kernel="sdpa")
        _, count, *sums = made.validation_step((batch, seen), 0).tolist()
    means = dict(zip(made.measures or (), (value / count for value in sums), strict=True))
    assert made.told(means, count) == {"accuracy": means["accuracy"], "margin": means["margin"]}


@pytest.mark.parametrize("loss", ["cpo", "orpo", {"apo_zero": 1.0, "nll": 0.5}, "aot", "aot_unpaired", "kto"])
def test_the_held_out_loss_is_that_of_the_domain_whatever_its_micro_batches(loss: Any, tmp_path: Path) -> None:
    """Also of losses that have to know of all items: as a step of these would have it, before that is taken."""
    view, made = ("unpaired", partial(singles, bad=False)) if loss == "kto" else ("preference", pairs)
    steps, held = [[rows_of(made(step), view)] for step in range(2)], rows_of(made(1), view)

    class Measured(Batches):
        held_out: list[Any]

        def val_dataloader(self) -> Any:
            return {"a": self.held_out}

    said = []
    for number, form in enumerate(([held], apart(held), [*apart(held)[::-1], held.rows(0, 0)])):
        stage = dpo(loss, lr=1e-2)
        stage.setup_facts = replace(stage.setup_facts, validate_every=1, domains={"a": (1.0, None)})
        feed, logger = Measured(cast(Any, steps)), Kept()
        feed.held_out = form
        trainer_of(2, tmp_path / str(number), logger=logger).fit(stage, feed)
        said.append({key: value for key, value in logger.rows[1].items() if key.startswith("valid/")})
        assert said[-1]["valid/a/loss"] == pytest.approx(logger.rows[2]["train/loss"], rel=1e-5)
    assert said[1] == pytest.approx(said[0], rel=1e-5, abs=1e-6) == said[2]


# -- the loss and what it needs


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"loss": "kto"}, "stage.view=unpaired"),
        ({"loss": "sigmoid", "view": "unpaired"}, "type stage.view=preference, or another loss (stage.loss=kto)"),
        ({"loss": "sigmoid", "view": "text"}, "a rejected answer: type stage.view=preference"),
        ({"loss": "kto", "view": "text"}, "good or bad: type stage.view=unpaired"),
        ({"loss": {"kto": 1.0, "sigmoid": 1.0}, "view": "unpaired"}, "choose one kind"),
        ({"loss": {"sigmiod": 1.0}}, "stage.loss has sigmiod; wanted some of"),
        ({"loss": []}, "stage.loss has no name"),
        ({"loss": ["sigmoid", "nll", "sigmoid"]}, "type 'stage.loss={sigmoid: 2.0, nll: 1.0}'"),
        ({"reference": None}, "stage.reference is null, and stage.loss sigmoid compares with one"),
        ({"reference": "adapter"}, "type adapter=lora, or stage.reference=live"),
        ({"loss": "apo_zero", "divergence": "js"}, "apo_zero is none"),
        ({"loss": "kto", "view": "unpaired", "tail": 0.5}, "kto has no pairs"),
        ({"loss": "kto", "view": "unpaired", "weighting": "wpo"}, "kto compares no two answers of one pair"),
        ({"loss": "aot", "weighting": "wpo"}, "type stage.weighting=none"),
        ({"loss": ["aot", "aot_unpaired"]}, "sort a step in two ways"),
    ],
)
def test_what_cannot_stand_together_says_what_to_type(changed: dict[str, Any], words: str) -> None:
    found = faults({"stage": {"view": "preference"} | CONF | changed})
    assert len(found) == 1 and words in found[0]


@pytest.mark.parametrize("loss", ["sigmod", ["sigmoid", "sigmod"]])
def test_a_name_that_the_type_of_the_key_refuses_is_a_fault_once(loss: Any) -> None:
    walk = Walk()
    walk.construct(PreferenceKeys, KEYS | {"loss": loss}, ())
    assert len(walk.faults) == 1 and not faults({"stage": CONF | {"loss": loss}})


@pytest.mark.parametrize(
    "changed",
    [{}, {"loss": "kto", "view": "unpaired"}, {"loss": ["simpo", "nll"], "reference": None}, {"divergence": "js"}],
)
def test_what_fits_is_let_through(changed: dict[str, Any]) -> None:
    assert faults({"stage": CONF | changed}) == []


def test_a_reference_is_held_where_the_loss_compares_with_one() -> None:
    assert dpo("sigmoid").reference is not None and dpo("simpo").reference is None
    copies = {name: Dpo.frozen_copies({"stage": CONF | {"loss": name}}) for name in ("sigmoid", "simpo", "orpo", "kto")}
    assert copies == {"sigmoid": 1, "simpo": 0, "orpo": 0, "kto": 1}
    assert Dpo.frozen_copies({"stage": CONF, "adapter": {"rank": 1}}) == 0
    assert Dpo.frozen_copies({"stage": CONF | {"reference": "cached"}}) == 0


def test_with_an_adapter_the_reference_is_the_model_without_it(tmp_path: Path) -> None:
    steps = [[rows_of(pairs(step), "preference")] for step in range(STEPS)]
    made = dpo(adapter=ADAPTER, lr=3e-2)
    rows = train(made, steps, tmp_path / "adapter")
    assert isinstance(made.reference, WithoutAdapter) and rows[1]["train/loss"] == pytest.approx(math.log(2), abs=1e-7)
    live = dpo(adapter=ADAPTER, lr=3e-2, reference="live")
    again = train(live, steps, tmp_path / "live")
    assert again[STEPS]["preference/margin"] == pytest.approx(rows[STEPS]["preference/margin"], rel=1e-4)
    assert rows[STEPS]["preference/margin"] != 0
    same(made, live)


@pytest.mark.parametrize("view", ["preference", "unpaired"])
def test_what_dropout_draws_follows_from_the_step_also_in_what_the_loss_knows_of_all_of_it(
    view: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that goes on finds torch's generator in another state."""
    pieces, loss = (pairs, "aot") if view == "preference" else (singles, "kto")
    steps, runs = [[rows_of(pieces(step), view)] for step in range(STEPS)], []
    for state in range(2):
        made = dpo(adapter=replace(ADAPTER, dropout=0.3), lr=3e-2, loss=loss)
        taken = made.training_step

        def after_others(batch: Any, batch_idx: int, *, taken: Any = taken, state: int = state) -> None:
            torch.manual_seed(state)
            taken(batch, batch_idx)

        monkeypatch.setattr(made, "training_step", after_others)
        train(made, steps, tmp_path / str(state))
        runs.append(made)
    same(*runs)


@pytest.mark.parametrize("changed", [{"tail": 0.3}, {"divergence": "js"}, {"divergence": "forward_kl"}])
def test_a_tail_and_a_divergence_begin_at_log_2_and_lead_elsewhere(changed: dict[str, Any], tmp_path: Path) -> None:
    plain, other = dpo(), dpo(**changed)
    batches = [[rows_of(pairs(step), "preference")] for step in range(2)]
    train(plain, batches, tmp_path / "plain")
    rows = train(other, batches, tmp_path / "other")
    assert rows[1]["train/loss"] == pytest.approx(math.log(2), abs=1e-6)
    moved = zip(plain.network.parameters(), other.network.parameters(), strict=True)
    assert not all(torch.equal(a, b) for a, b in moved)
