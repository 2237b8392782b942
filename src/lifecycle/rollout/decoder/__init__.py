"""One token more in many rows: a model laid out for few rows a step, in torch or in C."""
