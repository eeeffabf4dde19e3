"""How hard the property tests look: `suite` by default, `soak` with `--hypothesis-profile=soak`.

`suite` draws the same examples every time and few of them. `soak` draws many new ones; what fails is kept in
.hypothesis, tried first by the next run, and printed as a line that replays it.
"""

from __future__ import annotations

from hypothesis import HealthCheck, Phase, settings

#: A slow machine is no failure, and no example is worth a limit of its own: pytest's timeout bounds the test.
_COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.filter_too_much]}

# No explaining: it runs every failing test some hundred times more.
_PHASES = [Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink]

settings.register_profile("suite", max_examples=40, stateful_step_count=25, derandomize=True, phases=_PHASES, **_COMMON)
settings.register_profile("soak", max_examples=2000, stateful_step_count=60, print_blob=True, phases=_PHASES, **_COMMON)
settings.load_profile("suite")


def examples(share: float, *, steps: float = 1.0) -> settings:
    """Settings with so many times the examples, and the steps of each, that the profile has; at least three examples.

    For tests whose examples cost less or more than others', or find less or more.
    """
    default = settings.default
    return settings(
        max_examples=max(3, round(share * default.max_examples)),
        stateful_step_count=round(steps * default.stateful_step_count),
    )
