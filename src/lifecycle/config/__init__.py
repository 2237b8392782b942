"""The configuration: composed by Hydra, checked against the signatures of what it names, and built."""

from lifecycle.config.build import (
    SUPPLIED,
    asked_of_run,
    build,
    build_limits,
    build_loggers,
    is_job,
    part,
    reads_data,
    stage_class,
)
from lifecycle.config.checking import check
from lifecycle.config.command import compose, conf_dir, hydra_main
from lifecycle.config.compare import changed_keys, resolved
from lifecycle.config.composed import Command, command_of, literal
from lifecycle.config.schema import RunConfig

__all__ = [
    "SUPPLIED",
    "Command",
    "RunConfig",
    "asked_of_run",
    "build",
    "build_limits",
    "build_loggers",
    "changed_keys",
    "check",
    "command_of",
    "compose",
    "conf_dir",
    "hydra_main",
    "is_job",
    "literal",
    "part",
    "reads_data",
    "resolved",
    "stage_class",
]
