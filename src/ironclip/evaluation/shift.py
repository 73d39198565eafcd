"""Two figures of natural shift: corruption error relative to a named baseline, and old and new classes in one number.

Source: Hendrycks and Dietterich, ICLR 2019, arXiv:1903.12261, section 4.1 (mCE); Zhou et al., CVPR 2022,
arXiv:2203.05557 (base-to-new); evaluation plan 5.3 and 5.4. Deviations: the baseline is given and not AlexNet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ironclip.errors import ConfigError, ValueRangeError


def mean_corruption_error(errors: Mapping[str, Sequence[float]], baseline: Mapping[str, Sequence[float]]) -> float:
    """Return the mean over corruptions of a model's error over that of a baseline, each summed over severities.

    It says nothing without the baseline's name: 1 is as good as the baseline, below it is better.

    Args:
        errors: Of each corruption the shares of corrupted images answered wrongly, in [0, 1], one a severity. They are
            not those of rows under `corruption`, where an image that was wrong before is not looked at again.
        baseline: The same of the baseline, for the same corruptions and severities.

    Raises:
        ConfigError: There are no corruptions, or the two have not the same ones, or other severities.
        ValueRangeError: A share is outside [0, 1], or the baseline makes no error under a corruption.
    """
    shapes = [{kind: len(shares) for kind, shares in table.items()} for table in (errors, baseline)]
    if not errors or shapes[0] != shapes[1]:
        raise ConfigError(
            f"errors under {_listed(shapes[0])} and those of the baseline under {_listed(shapes[1])}.",
            "Give both for the same corruptions at the same severities, at least one.",
        )
    for name, table in (("error", errors), ("error of the baseline", baseline)):
        for kind, shares in table.items():
            if not all(0 <= share <= 1 for share in shares):
                raise ValueRangeError(f"{name} under {kind} is {list(shares)}.", "Give shares between 0 and 1.")
    perfect = [kind for kind, shares in baseline.items() if not sum(shares)]
    if perfect:
        raise ValueRangeError(
            f"the baseline makes no error under {', '.join(perfect)}, and nothing is relative to that.",
            "Take more images, or another baseline.",
        )
    return sum(sum(errors[kind]) / sum(baseline[kind]) for kind in errors) / len(errors)


def harmonic_mean(base: float, new: float) -> float:
    """Return the harmonic mean of the accuracies on old and on new classes, in [0, 1]: near the smaller of the two.

    Raises:
        ValueRangeError: One is outside [0, 1].
    """
    if not (0 <= base <= 1 and 0 <= new <= 1):
        raise ValueRangeError(f"accuracies of {base} and {new}.", "Give shares between 0 and 1.")
    return 2 * base * new / (base + new) if base and new else 0.0


def _listed(shape: Mapping[str, int]) -> str:
    return ", ".join(f"{kind} ({severities})" for kind, severities in shape.items()) or "no corruption"
