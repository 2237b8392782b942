"""The keys of `stage=dpo` that choose a loss: its name or a weighted sum of several, and what each is made with.

loss: sigmoid             loss: {sigmoid: 1.0, nll: 0.2}             loss: [apo_zero, nll]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from lifecycle.bounds import Bounds, NotNegative, Part, Positive
from lifecycle.losses.preference import Divergence

Source = Literal["live", "cached", "adapter"]
Kind = Literal["auto"] | Source
"""Where the reference's log-probabilities come from; auto: `adapter` where one is trained, else `live`, and none where
the loss compares with none."""

Weighting = Literal["none", "wpo"]
"""What a pair counts: 1, or how likely the policy itself writes both answers (`losses.preference.wpo_weights`)."""

BelowHalf = Annotated[float, Bounds(least=0, below=0.5)]


@dataclass(frozen=True, kw_only=True)
class Strength:
    """beta: how much a log-ratio counts."""

    beta: Positive


@dataclass(frozen=True, kw_only=True)
class Flipped(Strength):
    """smoothing: the share of labels that are the wrong way round."""

    smoothing: BelowHalf


@dataclass(frozen=True, kw_only=True)
class Softened(Strength):
    """smoothing: the probability that the rejected answer is the better one."""

    smoothing: Part


@dataclass(frozen=True, kw_only=True)
class Modulated(Strength):
    """tau: how sharply the two parts of the loss take turns."""

    tau: Positive


@dataclass(frozen=True, kw_only=True)
class Distanced(Strength):
    """gamma: the margin that is asked for."""

    gamma: NotNegative


@dataclass(frozen=True, kw_only=True)
class Anchored(Strength):
    """alpha: weight of the likelihood of the chosen answer."""

    alpha: NotNegative


@dataclass(frozen=True, kw_only=True)
class SideWeights(Strength):
    """Weights of the answers that are good and of those that are bad."""

    wanted_weight: Positive
    unwanted_weight: Positive


@dataclass(frozen=True, kw_only=True)
class Losses:
    """What each loss of `losses.preference` is made with."""

    sigmoid: Strength
    conservative: Flipped
    robust: Flipped
    hinge: Strength
    ipo: Strength
    ipo_sum: Strength
    sigmoid_norm: Strength
    apo_zero: Strength
    apo_down: Strength
    nca: Strength
    bco_pair: Strength
    sppo: Strength
    exo: Softened
    discopop: Modulated
    aot: Flipped
    aot_unpaired: Flipped
    simpo: Distanced
    cpo: Anchored
    orpo: Strength
    kto: SideWeights


LossName = Literal[
    "sigmoid",
    "conservative",
    "robust",
    "hinge",
    "ipo",
    "ipo_sum",
    "sigmoid_norm",
    "apo_zero",
    "apo_down",
    "nca",
    "bco_pair",
    "sppo",
    "exo",
    "discopop",
    "aot",
    "aot_unpaired",
    "simpo",
    "cpo",
    "orpo",
    "kto",
    "nll",
]
UNPAIRED = frozenset({"kto"})
REFERENCE_FREE = frozenset({"simpo", "cpo", "orpo", "nll"})
SORTING = frozenset({"aot", "aot_unpaired"})
"""Losses that compare the distributions of a step."""

COUNTING = frozenset({"cpo", "orpo", "nll"})
"""Losses that divide by the tokens of the step's chosen answers."""

OF_RATIOS = frozenset(
    {"sigmoid", "conservative", "robust", "hinge", "ipo", "ipo_sum", "sigmoid_norm", "exo", "discopop"}
)
"""Losses of the difference of two log-ratios: those that another divergence is defined for."""


@dataclass(frozen=True, kw_only=True)
class PreferenceKeys:
    """loss: a name, several, or their weights. beta: of the chosen losses; None: their own in `losses`. weighting: what
    a pair counts. divergence: of the policy from its reference, with the alpha of `alpha`. tail: weight of the tokens
    behind the length of a pair's shorter answer. reference: where its log-probabilities come from; None: there is
    none."""

    loss: LossName | list[LossName] | dict[str, Positive]
    beta: Positive | None
    losses: Losses
    weighting: Weighting
    divergence: Divergence
    divergence_alpha: Part
    tail: Annotated[float, Bounds(least=0, most=1)]
    reference: Kind | None

    @property
    def weights(self) -> dict[str, float]:
        """By name of a loss."""
        return weights_of(self.loss)

    def arguments(self, name: str) -> dict[str, float]:
        """What a loss is made with."""
        own: dict[str, float] = {} if name == "nll" else dict(vars(getattr(self.losses, name)))
        return own if self.beta is None or "beta" not in own else own | {"beta": self.beta}


def weights_of(loss: Any) -> dict[str, float]:
    """Of a value of `stage.loss`, of which nothing is checked yet."""
    if isinstance(loss, Mapping):
        return {str(name): weight for name, weight in loss.items()}
    return dict.fromkeys([loss] if isinstance(loss, str) else list(loss) if isinstance(loss, list) else [], 1.0)


def reference_of(kind: Kind | None, losses: Mapping[str, float], *, adapter: bool) -> Source | None:
    """What `stage.reference` comes to for these losses, in a run that trains an adapter or all weights."""
    if kind != "auto":
        return kind
    if set(losses) <= REFERENCE_FREE:
        return None
    return "adapter" if adapter else "live"


def frozen_copies(config: Mapping[str, Any]) -> int:
    """How many copies of the parent's weights a run of this config holds."""
    stage, adapter = config["stage"], config.get("adapter") is not None
    return int(reference_of(stage["reference"], weights_of(stage["loss"]), adapter=adapter) == "live")


def faults(config: Mapping[str, Any]) -> list[str]:
    """Of values of `stage` that are each right and cannot stand together."""
    stage = config.get("stage", {})
    names = set(weights_of(stage.get("loss")))
    known = {*Losses.__dataclass_fields__, "nll"}
    if names - known and not isinstance(stage["loss"], Mapping):
        return []  # the type of the key says so; it does not look at the names of weights
    if names - known or not names:
        return [
            f"stage.loss has {', '.join(sorted(names - known)) or 'no name'}; wanted some of {', '.join(sorted(known))}"
        ]
    if isinstance(stage["loss"], list) and len(names) < len(stage["loss"]):
        sums = ", ".join(f"{name}: {stage['loss'].count(name)}.0" for name in weights_of(stage["loss"]))
        return [f"stage.loss names a loss more than once: type 'stage.loss={{{sums}}}' for such a sum"]
    return [*_views(names, stage), *_references(names, stage, config), *_changes(names, stage)]


def _views(names: set[str], stage: Mapping[str, Any]) -> list[str]:
    """Losses of pairs and of single answers, and the view that gives such."""
    if names & UNPAIRED and names - UNPAIRED:
        return [
            f"stage.loss sums {', '.join(sorted(names & UNPAIRED))}, a loss of single answers, and "
            f"{', '.join(sorted(names - UNPAIRED))} of pairs: choose one kind"
        ]
    wanted = "unpaired" if names & UNPAIRED else "preference"
    if not isinstance(stage.get("view"), str) or stage["view"] == wanted:
        return []
    data = "single answers, good or bad" if wanted == "unpaired" else "pairs of a chosen and a rejected answer"
    others = "sigmoid" if wanted == "unpaired" else "kto"
    # the other loss is advice only where the view is one of such data
    instead = f", or another loss (stage.loss={others})" if stage["view"] in ("preference", "unpaired") else ""
    return [
        f"stage.view is '{stage['view']}', and stage.loss {', '.join(sorted(names))} trains on {data}: type "
        f"stage.view={wanted}{instead}"
    ]


def _references(names: set[str], stage: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    """A loss without the reference that it compares with."""
    if stage.get("reference") == "adapter" and config.get("adapter") is None:
        return [
            "stage.reference is 'adapter', the model without the adapter that is trained, and none is: type "
            "adapter=lora, or stage.reference=live"
        ]
    if stage.get("reference", "auto") is not None or names <= REFERENCE_FREE:
        return []
    return [
        f"stage.reference is null, and stage.loss {', '.join(sorted(names - REFERENCE_FREE))} compares with one: type "
        "stage.reference=auto, or a loss without (simpo, orpo, cpo)"
    ]


def _changes(names: set[str], stage: Mapping[str, Any]) -> list[str]:
    """What is done to log-ratios that the loss has none of."""
    found = []
    if stage.get("divergence", "reverse_kl") != "reverse_kl" and (others := names - OF_RATIOS - {"nll"}):
        found.append(
            f"stage.divergence={stage['divergence']} is defined for losses of a difference of log-ratios, and "
            f"{', '.join(sorted(others))} is none: type stage.divergence=reverse_kl"
        )
    if stage.get("tail", 1.0) != 1.0 and names & UNPAIRED:
        found.append("stage.tail is about the longer answer of a pair, and kto has no pairs: type stage.tail=1")
    if stage.get("weighting", "none") != "none" and (unfit := names & (UNPAIRED | SORTING)):
        found.append(
            f"stage.weighting={stage['weighting']} is a weight of a pair, and {', '.join(sorted(unfit))} compares no "
            "two answers of one pair: type stage.weighting=none"
        )
    if SORTING <= names:
        found.append("stage.loss sums aot and aot_unpaired, which sort a step in two ways: choose one")
    return found
