"""The parts of a model's config under keys of their own: rotary scaling, experts, latent attention.

    moe:    {experts: 64, active: 6, ffn_width: 1408, shared: 2, first_dense: 1, score: sigmoid, ...}
    latent: {q_rank: null, kv_rank: 512, nope_dim: 128, rope_dim: 64, v_dim: 128}
    rope_scaling: {kind: llama3, factor: 8, original_positions: 8192, low_freq_factor: 1, high_freq_factor: 4}

Each lists all its own faults in one `UserError`; how they fit together is checked in config.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from lifecycle.errors import UserError

ScalingKind = Literal["linear", "ntk", "yarn", "llama3"]
Score = Literal["softmax", "sigmoid"]


def refuse(place: str, faults: list[str]) -> None:
    """Raise one `UserError` that lists the faults of `place`, if there are any."""
    if faults:
        raise UserError(f"{place}: this cannot be built:\n" + "\n".join(f"  - {fault}" for fault in faults))


def not_positive(place: str, values: dict[str, float | None]) -> list[str]:
    """A fault for every value that is neither None nor above 0."""
    return [
        f"{place}.{key} is {value}; it must be above 0"
        for key, value in values.items()
        if value is not None and not value > 0
    ]


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How rotary angles are stretched to reach `factor` times further; the equations are in rope.py.

    original_positions: longest sequence before the scaling (yarn, llama3). beta_fast, beta_slow: turns within it above
    and below which a yarn angle is kept or divided. attention_factor: what yarn multiplies cos and sin with (None:
    0.1 ln(factor) + 1, or from mscale over mscale_all_dim where both are given). mscale_all_dim also sharpens the
    softmax of latent attention, in every kind but ntk, which an export cannot name. low_freq_factor, high_freq_factor:
    llama3's two wavelengths, as divisors of original_positions.
    """

    kind: ScalingKind
    factor: float
    original_positions: int | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        faults = []
        if self.kind not in get_args(ScalingKind):
            faults.append(f"kind is {self.kind!r}; choose one of {', '.join(get_args(ScalingKind))}")
        if not self.factor >= 1:
            faults.append(f"factor is {self.factor}; it must be at least 1")
        if self.kind in ("yarn", "llama3") and not (self.original_positions or 0) > 0:
            faults.append(f"original_positions is {self.original_positions}; {self.kind} wants that before the scaling")
        if self.kind == "ntk" and self.mscale_all_dim:
            faults.append(f"mscale_all_dim is {self.mscale_all_dim}; ntk is built without: set it to null")
        if not self.beta_fast > self.beta_slow > 0:
            faults.append(f"beta_fast is {self.beta_fast}, beta_slow {self.beta_slow}; wanted fast > slow > 0")
        if not self.high_freq_factor > self.low_freq_factor > 0:
            low, high = self.low_freq_factor, self.high_freq_factor
            faults.append(f"low_freq_factor is {low}, high_freq_factor {high}; wanted high > low > 0")
        refuse("model.rope_scaling", faults)


@dataclass(frozen=True, kw_only=True)
class MoE:
    """A mixture of experts in place of the feed-forward part of every block from `first_dense` on (see moe.py).

    experts: how many, of which each token visits `active`, each `ffn_width` wide. shared: experts that every token
    visits, built as one of `shared_ffn_width` (None: shared * ffn_width), behind a sigmoid gate if `shared_gate`.
    score: of a token for each expert. normalise: the visited experts' scores sum to 1. scale: multiplies them.
    groups, active_groups: a token visits experts of its best `active_groups` of `groups` equal groups only.
    bias_rate: how far each step moves the choice bias of an expert towards even loads, 0 for no bias (arXiv
    2408.15664). balance: weight of the sequence-wise balance loss, 0 for none (arXiv 2412.19437, eq. 17-20).
    """

    experts: int
    active: int
    ffn_width: int
    shared: int = 0
    shared_ffn_width: int | None = None
    shared_gate: bool = False
    first_dense: int = 0
    score: Score = "softmax"
    normalise: bool = True
    scale: float = 1.0
    groups: int = 1
    active_groups: int = 1
    bias_rate: float = 0.0
    balance: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        sizes = {"experts": self.experts, "active": self.active, "ffn_width": self.ffn_width, "scale": self.scale}
        faults = not_positive("model.moe", {**sizes, "shared_ffn_width": self.shared_ffn_width})
        below = {key: getattr(self, key) for key in ("shared", "first_dense", "bias_rate", "balance")}
        faults += [f"{key} is {value}; it must be 0 (none) or above" for key, value in below.items() if not value >= 0]
        if self.score not in get_args(Score):
            faults.append(f"score is {self.score!r}; choose one of {', '.join(get_args(Score))}")
        if self.active > self.experts:
            faults.append(
                f"active is {self.active} of {self.experts} experts; a token cannot visit more than there are"
            )
        if not self.shared and (self.shared_gate or self.shared_ffn_width is not None):
            faults.append("shared is 0, but shared_gate or shared_ffn_width is set; set shared=1 or remove them")
        refuse("model.moe", faults + self._groups())

    def _groups(self) -> list[str]:
        if self.groups < 1 or self.experts % self.groups:
            return [f"groups is {self.groups} and experts {self.experts}; groups must divide them evenly"]
        if not 1 <= self.active_groups <= self.groups:
            return [f"active_groups is {self.active_groups}; it must be between 1 and groups={self.groups}"]
        size = self.experts // self.groups
        if self.active > self.active_groups * size:
            return [
                f"active is {self.active}, but {self.active_groups} groups hold {self.active_groups * size} experts"
            ]
        if self.score == "sigmoid" and self.groups > 1 and size < 2:
            return [f"groups is {self.groups}: a group of one expert has no second score, by which groups are chosen"]
        return []

    @property
    def shared_width(self) -> int:
        """Inner width of all shared experts together; 0 without any."""
        return self.shared * self.ffn_width if self.shared_ffn_width is None else self.shared_ffn_width

    def matrices(self, width: int, experts: int) -> int:
        """Parameters of the router, the shared experts and `experts` of the routed ones, in a block of this width."""
        gate = width if self.shared_gate else 0
        return width * self.experts + 3 * width * (self.shared_width + experts * self.ffn_width) + gate


@dataclass(frozen=True, kw_only=True)
class Latent:
    """Multi-head latent attention (arXiv 2405.04434, section 2.1): keys and values from one small vector a token.

    kv_rank: width of that vector; q_rank: the same for queries (None: queries straight from the stream). A head's
    query and key are `nope_dim` wide without positions and `rope_dim` wide with them; its value is `v_dim` wide.
    """

    kv_rank: int
    nope_dim: int
    rope_dim: int
    v_dim: int
    q_rank: int | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        sizes = {"kv_rank": self.kv_rank, "nope_dim": self.nope_dim, "rope_dim": self.rope_dim, "v_dim": self.v_dim}
        faults = not_positive("model.latent", {**sizes, "q_rank": self.q_rank})
        if self.rope_dim % 2:
            faults.append(f"rope_dim is {self.rope_dim}; it must be even, because rotary positions turn pairs")
        refuse("model.latent", faults)

    def parameters(self, width: int, heads: int) -> int:
        """Parameters of one attention part, its two inner norms included."""
        query = heads * (self.nope_dim + self.rope_dim)
        down = 0 if self.q_rank is None else self.q_rank * (width + 1)
        up = (width if self.q_rank is None else self.q_rank) * query
        keys = width * (self.kv_rank + self.rope_dim) + self.kv_rank
        return down + up + keys + self.kv_rank * heads * (self.nope_dim + self.v_dim) + heads * self.v_dim * width
