"""The reference that a policy is held near: the parent, or what the policy was some steps ago.

    every `kl.refresh_every` steps      reference <- a policy + (1 - a) reference          a = `kl.refresh_mix`

as in TR-DPO (arXiv 2404.09656, equations 4 and 5: soft for a below 1, hard for a = 1), and in TRL's `sync_ref_model`.

what is trained     the reference is                                        a checkpoint holds of it
all weights         a frozen network                                        nothing
... refreshed       the same, its weights in fp32                           its weights
an adapter          the network without the adapter                         nothing
... refreshed       the network with a kept copy of the adapter's weights   that copy, from the first refresh on
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from lifecycle.bounds import due
from lifecycle.model import Decoder, ModelConfig
from lifecycle.model.adapters import adapter_off, dropout_off
from lifecycle.model.decoder import fill
from lifecycle.stages.beside.frozen import FrozenNetwork
from lifecycle.stages.reinforcement.settings import KlKeys
from lifecycle.stages.run.setup import Setup
from lifecycle.system.shards import is_sharded, local_part


class PolicyReference:
    """What the learner of a stage asks for the distance; a stage puts it among what its checkpoints carry.

    asked: whether the run has one. beside: a network of its own, for `Stage(beside=...)`; None where there is none.
    kept: a module with the weights that a checkpoint has to hold; a stage makes it its own.
    """

    def __init__(self, *, model: ModelConfig, keys: KlKeys, head: torch.dtype | None, setup: Setup) -> None:
        self.asked = keys.coefficient > 0 or any((s.kl_coefficient or 0) > 0 for s in setup.timeline.segments)
        self._every, self._mix = keys.refresh_every, keys.refresh_mix
        self.kept = nn.Module()
        self.beside: FrozenNetwork | None = None
        self._held: dict[str, Tensor] | None = None  # of an adapter, once it was refreshed
        if self.asked and setup.adapter is None:
            assert setup.parent is not None
            refreshed = keys.refresh_every is not None
            self.beside = FrozenNetwork(
                config=model,
                read=setup.parent.read,
                setup=setup,
                dtype=torch.float32 if refreshed else None,
                head=head,
                within=self.kept if refreshed else None,
            )

    @contextlib.contextmanager
    def network(self, policy: Decoder) -> Iterator[Decoder]:
        """The reference, to be evaluated without gradients."""
        if self.beside is not None:
            yield self.beside.network
        elif self._held is None:
            with adapter_off(policy):
                yield policy
        else:
            with _with_weights(policy, self._held), dropout_off(policy):
                yield policy

    @torch.no_grad()
    def after(self, policy: Decoder, steps: int) -> None:
        """Refresh it, where that is due after so many steps of the run. Every rank must call."""
        if not (self.asked and due(steps, self._every)):
            return
        if self.beside is None:
            self._held = {name: _whole(weight) for name, weight in _trained(policy).items()}
            return
        from torch.distributed.fsdp import FSDPModule  # here: see `shards`

        reference = self.beside.network
        for network in (policy, reference):
            if isinstance(network, FSDPModule):
                network.reshard()  # what lies gathered after a forward pass is a copy
        theirs = policy.state_dict()
        for name, weight in reference.state_dict().items():
            mine, new = local_part(weight), local_part(theirs[name])
            if self._mix == 1:
                mine.copy_(new)
            else:
                mine.lerp_(new, self._mix)
        reference.weights_changed()

    def state(self) -> dict[str, Tensor] | None:
        """For the checkpoint. Every rank must call."""
        return self._held

    def restore(self, state: Mapping[str, Tensor] | None) -> None:
        """Go on from `state`."""
        self._held = None if state is None else dict(state)


@contextlib.contextmanager
def _with_weights(network: Decoder, held: Mapping[str, Tensor]) -> Iterator[None]:
    """The network with other weights of its adapter."""
    trained = _trained(network)
    own = {name: local_part(weight).detach().clone() for name, weight in trained.items()}

    with torch.no_grad():
        for name, weight in trained.items():
            fill(weight, held[name])
    torch.clear_autocast_cache()  # it is of the weights before
    try:
        yield
    finally:
        with torch.no_grad():
            for name, weight in trained.items():
                local_part(weight).copy_(own[name])
        torch.clear_autocast_cache()


def _trained(network: Decoder) -> dict[str, Tensor]:
    return {name: weight for name, weight in network.named_parameters() if weight.requires_grad}


def _whole(weight: Tensor) -> Tensor:
    """A copy with the parts of all ranks. Every rank must call."""
    return (weight.full_tensor() if is_sharded(weight) else weight).detach().clone()
