"""Formulas of reinforcement learning: pure functions of tensors, one file for each choice that a stage makes.

    rewards -> advantages.py        whose samples were better than expected
            -> objectives.py        ratio of the new policy to the old one, and its bounds
            -> masks.py             ratio of the old policy to the sampler: what counts less, or not at all
            -> kl.py                distance from a reference
            -> entropy.py           a weight of the entropy that moves
            -> normalisers.py       what the sum over tokens is divided by

    loss = - sum over tokens of w (mask * objective - beta KL + c H)  /  sum over samples of d

The sum of d is over all samples of an optimizer step, whatever rank and micro-batch they are on.
"""
