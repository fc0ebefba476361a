"""A sweep compared with the same runs one after the other: CPU seconds, compilations and rounds apart."""

import dataclasses

RATES, PULLS = [0.03, 0.1, 0.3], [0.0, 0.1, 1.0]


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of the comparison."""

    seeds: tuple[int, ...] = (1, 8)
    """Numbers of seeds of each of the nine settings."""
    rounds: int = 30
    """Rounds of a run."""
    pairs: int = 3
    """Times that each is measured, in turn, every time in processes of their own."""
