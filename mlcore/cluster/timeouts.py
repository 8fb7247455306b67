"""How long members of a cluster wait for each other."""

from dataclasses import dataclass

# A predecessor of the same name may still be ending.
OWN_PORT_TIMEOUT_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Timeouts:
    """Bounds in seconds; the flags of a training step with the same names.

    Attributes:
        start_timeout_s: For the others to come up.
        chief_timeout_s: For which the chief may be gone.
        stall_timeout_s: For which a worker may not answer.
        evaluation_timeout_s: For the evaluator's last evaluation.
    """

    start_timeout_s: float = 600.0
    chief_timeout_s: float = 120.0
    stall_timeout_s: float = 30.0
    evaluation_timeout_s: float = 600.0
