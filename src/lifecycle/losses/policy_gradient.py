"""Policy gradient on tokens that were sampled: importance sampling, and what a teacher thinks of each token.

    loss = - sum over tokens of exp(l - mu) A          A = sg(log q - mu)

l: log-probability of the token now; mu: that with which it was drawn; q: the teacher's. In the mean over samples its
gradient is that of the reverse divergence KL(p || q) at each token, the context given (discount 0).
"""

from __future__ import annotations

from torch import Tensor


def teacher_advantage(teacher_logp_N: Tensor, sampler_logp_N: Tensor) -> Tensor:
    """(N,) how much likelier a token is to the teacher than to who drew it, in nats; a constant."""
    return (teacher_logp_N - sampler_logp_N).detach()


def importance_sampling(logp_N: Tensor, sampler_logp_N: Tensor, advantage_N: Tensor) -> Tensor:
    """Summed over the N tokens: scalar. Advantage and sampler are constants to the gradient."""
    return -((logp_N - sampler_logp_N.detach()).exp() * advantage_N.detach()).sum()
