"""What a model says to held-out prompts and pairs: `given` makes the answers, `asking` is the callback that asks for
them (it stands on Lightning), `scores` is what a reward model says in place of answers."""
