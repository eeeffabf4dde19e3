"""The guards without a model as one: what judges files, training data and every message before a model is asked."""

from __future__ import annotations

from collections.abc import Sequence

from serving_bridge.safety.decisions import Decision, Opinion, Stage, Verdict
from serving_bridge.safety.harm import HarmRules
from serving_bridge.safety.injections import Injections
from serving_bridge.safety.local import LocalGuard
from serving_bridge.safety.personal_data import PersonalData, Redactor
from serving_bridge.safety.verdicts import decided
from serving_bridge.settings import SafetySettings


def local_guards(settings: SafetySettings) -> tuple[LocalGuard, ...]:
    """The guards that need no other process, as the settings want them."""
    return (PersonalData(settings.phone_regions), HarmRules(), Injections())


class Checker:
    """Asks the local guards about one text at a time; for files, and for all that has no event loop."""

    def __init__(self, settings: SafetySettings, guards: Sequence[LocalGuard] | None = None) -> None:
        self._settings = settings
        self._guards = local_guards(settings) if guards is None else tuple(guards)

    def check(self, text: str, stage: Stage, redactor: Redactor | None = None) -> Decision:
        """A decision; a failed guard holds back what the stage says, and training data always."""
        return decided(
            text,
            self.opinions(text, stage),
            block=self._settings.block,
            closed=is_closed(self._settings, stage),
            redactor=redactor or Redactor(),
        )

    def opinions(self, text: str, stage: Stage, *, is_document: bool = False) -> list[Opinion]:
        """What each guard says; a text that is too long is not judged, which is an error of every guard."""
        if len(text) > self._settings.max_chars:
            reason = f"{len(text)} characters, safety.max_chars is {self._settings.max_chars}"
            return [Opinion(guard.name, guard.version, Verdict.ERROR, reason=reason) for guard in self._guards]
        return [guard.judge(text, stage, is_document=is_document) for guard in self._guards]


def is_closed(settings: SafetySettings, stage: Stage, tenant: str = "") -> bool:
    """Whether a text is held back when a guard fails."""
    if stage is Stage.TRAINING_DATA:
        return True
    own = settings.tenants.get(tenant)
    said = (own.prompt if stage is Stage.PROMPT else own.answer) if own is not None else None
    return (said or (settings.prompt if stage is Stage.PROMPT else settings.answer)) == "closed"
