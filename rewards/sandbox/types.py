"""What a program may use in the sandbox, and how its run ended."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Resource limits of a job."""

    case_s: float = 1.0
    """Processor time of one test, in seconds. The wall-clock limit is twice as long."""
    all_s: float = 2.0
    """The same for all tests of a call together."""
    memory_bytes: int = 512 << 20
    """Address space of a process."""
    output_bytes: int = 1 << 20
    """Size of the output."""


@dataclass(frozen=True)
class Script:
    """How the run of a script ended."""

    ended: bool
    """Whether it ended by itself within the limits."""
    status: int
    """Its exit status; negative for the signal that killed it."""
    output: bytes
    """What it wrote to standard output."""
