"""What an accountant knows for certain: an interval that contains the exact figure."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Interval:
    """`lower` ≤ exact ≤ `upper`. The upper end is the one to report.

    "Exact" is the figure of the accounted pairs of distributions. Where a mechanism's worst case is only known to be dominated by
    its pair (the exponential mechanism, composed; sampling under replace_one; truncated batches), the mechanism's own figure
    may be lower still; it is never above `upper`.

    Attributes:
      lower, upper: of ε, or of δ.
    """

    lower: float
    upper: float

    @property
    def relative_width(self) -> float:
        """(upper − lower)/upper; 0 if they are equal."""
        return 0.0 if self.lower == self.upper else (self.upper - self.lower) / self.upper
