"""The configuration: composed by Hydra, checked against the signatures of what it names, and built."""

from lifecycle.config.build import (
    RunConfig,
    arguments,
    build,
    build_limits,
    build_loggers,
    changed_keys,
    check,
    compose,
    conf_dir,
    hydra_main,
    is_job,
    literal,
    needs,
    overrides,
    resolved,
    starts_from_parent,
)

__all__ = [
    "RunConfig",
    "arguments",
    "build",
    "build_limits",
    "build_loggers",
    "changed_keys",
    "check",
    "compose",
    "conf_dir",
    "hydra_main",
    "is_job",
    "literal",
    "needs",
    "overrides",
    "resolved",
    "starts_from_parent",
]
