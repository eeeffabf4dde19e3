"""`python -m tools.canary feedback`: what users said of a run's answers, in the registry's observations."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import pytest

from serving_bridge.feedback import Feedback
from serving_bridge.registry import Registry
from serving_bridge.text import Tokenizer
from tests.support.canary_world import NAMESPACE, CanaryWorld
from tests.support.recording_world import Recordings, answer
from tests.support.session_world import tokenizer
from tools.canary import main

__all__ = ["tokenizer"]


def test_feedback_of_a_run_becomes_observations_once(
    tmp_path: Path, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    recordings = Recordings(tokenizer, tmp_path, str(tmp_path / "run.db"))
    recordings.clock.now_s = time.time() - 60
    _, response_id = answer(recordings)
    assert recordings.feedback().add("acme", [Feedback("f1", f"{response_id}/0", "thumbs", 0.0)]) == ["joined"]
    root = tmp_path / "registry"
    Registry(root).close()
    follow = ["feedback", str(root), "--run", str(tmp_path / "run.db"), "--once"]
    main([*follow, "--settle-s", "3600"])
    assert "0 answered requests are observed" in capsys.readouterr().out
    for number in (1, 0):
        main([*follow, "--settle-s", "0"])
        assert f"{number} answered requests are observed" in capsys.readouterr().out
    world = CanaryWorld.of(root)
    ((_, kind, arm, version, tenant, _, _, measures),) = world.log.after(NAMESPACE, 0)
    assert (kind, arm, version, tenant) == ("feedback", "stable", 3, "acme")
    assert msgspec.json.decode(measures) == {"thumbs_down": 1.0, "regenerated": 0.0}
    world.close()
    for more, match in ((["--settle-s", "-1"], "expected seconds from 0 on"), (["--run", "nowhere"], "does not exist")):
        with pytest.raises(SystemExit):
            main([*follow, *more])
        assert match in capsys.readouterr().err
    assert recordings.database is not None
    recordings.database.close()
