"""No wait without a bound: every module is scanned, and the few that may wait otherwise say why."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.support.wait_scanner import scan

PACKAGES = ("learner_jax", "serving_bridge", "rewards", "tools")
#: measurements and test equipment, which nobody waits for unwatched
LEFT_OUT = ("tools/bench", "tools/study", "tools/testing")

_DISK = "reads or writes a disk, for which no call has a timeout"
_GUARD = "the guard has the standard library only; its deadline stands beside"
_WATCHED = "a host that is silent for learner.hosts.heartbeat_timeout_s ends this process"
_DEADLINE = "a deadline or timeout stands beside"
_EPISODES = "each episode has a deadline, rollout.episode_timeout_s"
_SETTLED = "what must not be cut off is bounded by the requests that it makes"

_REQUEST = "the request's deadline stands around it: gateway.timeout_s"
_GATEWAY = "a loop of the gateway's process, as long as it runs; each thing that it does has a timeout"

_ASKED = "in vLLM's server, on its engine, as long as the client waits: its bound is rollout.request_timeout_s"

#: (module:function, code) -> why it may stand without a bound
ALLOWED: dict[tuple[str, str], str] = {
    (
        "serving_bridge/canary/observer.py:Observer._run",
        "while not self._stopped.wait(self._every_s if self.flush() else _RETRY_S)",
    ): "a thread that lives as long as its gateway; stops when it is told to",
    ("serving_bridge/notices/messenger.py:Messenger._all", "asyncio.gather(*posts)"): "each has the session's timeout",
    (
        "serving_bridge/notices/messenger.py:Messenger._run",
        "while not self._stopped.wait(_POLL_S)",
    ): "a thread that lives as long as the controller; stops when it is told to",
    ("tools/canary.py:run", "while not stop()"): "the controller runs until it is stopped",
    ("tools/canary_feedback.py:follow_feedback", "while not stop()"): "it follows a run until it is stopped",
    ("serving_bridge/safety/guards.py:_outcome", "task.result()"): "the task has ended: safety.deadline_s",
    (
        "serving_bridge/safety/training.py:GuardsForTraining._all",
        "asyncio.gather(*map(one, conversations))",
    ): "every guard of each has safety.deadline_s",
    (
        "serving_bridge/gateway/application.py:_while_there",
        "asyncio.wait([working, leaving], return_when=asyncio.FIRST_COMPLETED)",
    ): _REQUEST,
    (
        "serving_bridge/gateway/process.py:Gateway.run",
        "while not serving.done() and (not self._should_stop())",
    ): _GATEWAY,
    ("serving_bridge/gateway/process.py:Gateway._follow", "while True"): _GATEWAY,
    ("serving_bridge/gateway/process.py:Gateway._follow_split", "while True"): _GATEWAY,
    ("serving_bridge/gateway/process.py:Gateway._look", "while True"): _GATEWAY,
    (
        "serving_bridge/gateway/process.py:Gateway._look",
        "asyncio.gather(*map(look, self._replicas.targets))",
    ): _GATEWAY,
    ("serving_bridge/gateway/process.py:Gateway._tell", "while True"): _GATEWAY,
    (
        "serving_bridge/gateway/process.py:_background",
        "asyncio.gather(*tasks, return_exceptions=True)",
    ): "tasks that were cancelled, and that wait for nothing in ending",
    (
        "serving_bridge/feedback/judge.py:NextTurnJudge.judged",
        "asyncio.gather(*(self._vote(turn, number) for number in range(self.votes)))",
    ): "each vote has a timeout",
    ("serving_bridge/recordings/recorder.py:Recorder._follow", "while True"): _GATEWAY,
    ("serving_bridge/recordings/recorder.py:Recorder._purging", "while True"): _GATEWAY,
    (
        "serving_bridge/recordings/recorder.py:Recorder.running",
        "asyncio.gather(*loops, return_exceptions=True)",
    ): "tasks that were cancelled, and that wait for nothing in ending",
    ("serving_bridge/gateway/flows.py:_together", "found.get()"): _REQUEST,
    (
        "serving_bridge/gateway/mirror.py:Mirror.close",
        "asyncio.gather(*tasks, return_exceptions=True)",
    ): "copies that were cancelled: they close their connections",
    (
        "serving_bridge/gateway/flows.py:_together",
        "asyncio.gather(*tasks, return_exceptions=True)",
    ): "tasks that were cancelled, and that wait for nothing in ending",
    ("tools/gateway.py:_supervise", "while not stop()"): "as long as the gateway runs: the processes are looked after",
    ("rewards/tasks/reward_server.py:ServerReward._asked", "while True"): "left_s bounds it by the answers' deadline",
    (
        "serving_bridge/tenants/exchange.py:Exchange.run",
        "while True",
    ): "a gateway's task, which ends with it; each exchange has the database's timeout",
    (
        "serving_bridge/weights/publisher.py:Publisher._mend",
        "while not self._closed.wait(max(_POLL_S, self._store.poll_s))",
    ): "a thread that looks every so often until the publisher is closed",
    (
        "serving_bridge/sessions/endpoint.py:_all",
        "asyncio.gather(*work)",
    ): "each request of the sampler has rollout.request_timeout_s, and the episode task.episode.wall_s",
    (
        "rewards/tools/toolbox.py:Toolbox.run",
        "asyncio.gather(*(self._one(number, call, row) for number, call in enumerate(calls)))",
    ): "each call has task.episode.tool_timeout_s",
    (
        "rewards/environments/user_simulator.py:_Endpoint.ask",
        "while True",
    ): "its caller gives it task.episode.user_timeout_s",
    (
        "tools/scoring/processes.py:scored_lines",
        "waiting.popleft().result()",
    ): "each line has a deadline in its process",
    (
        "serving_bridge/vllm_plugin/sampling.py:until_gone",
        "asyncio.wait([work, leaving], return_when=asyncio.FIRST_COMPLETED)",
    ): _ASKED,
    (
        "serving_bridge/fleet/further_host.py:FurtherHost.run",
        "while not should_stop()",
    ): "as long as the fleet runs: this host's part waits for nothing but the next start",
    (
        "learner_jax/checkpoints/proof.py:Proof._run",
        "while self._is_writing()",
    ): "a thread that `Checkpoints.wait` bounds",
    (
        "learner_jax/checkpoints/arrays.py:_ocdbt_values",
        "ts.KvStore.open({'driver': 'file', 'path': f'{item}/'}, context=context).result()",
    ): _DISK,
    (
        "learner_jax/checkpoints/arrays.py:_ocdbt_values.dumped",
        "ts.ocdbt.dump(base, location, context=context).result()",
    ): _DISK,
    (
        "learner_jax/conversion/checkpoint_reader.py:_open",
        "ts.open(spec, open=True, context=_context()).result()",
    ): _DISK,
    ("learner_jax/conversion/checkpoint_reader.py:_result", "future.result()"): _DISK,
    ("learner_jax/conversion/checkpoint_writer.py:stage_parameters", "ahead.pop().result()"): _DISK,
    (
        "learner_jax/conversion/checkpoint_writer.py:_write_small",
        "array[first].write(np.zeros((), leaf.dtype) if value is None else value).result()",
    ): _DISK,
    (
        "learner_jax/conversion/checkpoint_writer.py:_create",
        "ts.open(spec, create=True, open=True, dtype=str(dtype), shape=list(shape)).result()",
    ): _DISK,
    ("learner_jax/conversion/work_folder.py:Settler._wait", "self._running.result()"): _DISK,
    (
        "serving_bridge/storage/file_cache.py:FileCache._alone",
        "while not (held := _locked(descriptor)) and time.monotonic() < deadline",
    ): _DEADLINE,
    ("serving_bridge/storage/pieces.py:each", "future.result()"): "requests, bounded by store.storage_timeout_s",
    (
        "learner_jax/loop/holding.py:Holding.may_go_on",
        "while True",
    ): "training is held until a person lets it go on; a stop is heard at every look",
    ("learner_jax/loop/learner.py:Learner._run", "self._publishing.wait()"): "bounded inside, by learner.max_wait_s",
    ("learner_jax/loop/kl_control.py:KLControl.reference", "self._ahead.result()"): "a computation of this process",
    ("learner_jax/training/supervised.py:_prefetch", "pending.result()"): "a computation of this process",
    ("serving_bridge/fleet/caretaker.py:Caretaker.tend", "work.result()"): "the task is done",
    ("serving_bridge/fleet/looks.py:Looks.check", "task.result()"): "the task is done",
    ("serving_bridge/fleet/controller.py:Fleet.run", "while not self._should_stop()"): "the service itself",
    ("serving_bridge/fleet/looks.py:Looks.begin.again_and_again", "while True"): "the service itself",
    (
        "serving_bridge/fleet/controller.py:Fleet._end_now",
        "asyncio.gather(*(member.server.kill() for member in self.members), return_exceptions=True)",
    ): "each is bounded: SIGKILL, and an error if that does not help",
    (
        "serving_bridge/fleet/controller.py:Fleet._end_now",
        "asyncio.gather(*tasks, return_exceptions=True)",
    ): "cancelled, and the servers that they talked to are gone",
    (
        "serving_bridge/evaluation/single_answers.py:SingleAnswers.__call__",
        "asyncio.gather(*map(examined, parts))",
    ): "each request has a timeout, each score a deadline",
    (
        "serving_bridge/evaluation/single_answers.py:SingleAnswers.__call__.examined",
        "asyncio.gather(*(self._judged(problem, answer, judging) for (problem, _), answer in pairs))",
    ): "each score has a deadline",
    ("serving_bridge/vllm_plugin/sampling.py:answers", "asyncio.gather(*tasks)"): _ASKED,
    ("serving_bridge/vllm_plugin/sampling.py:answers", "asyncio.gather(*tasks, return_exceptions=True)"): _ASKED,
    (
        "serving_bridge/evaluation/single_answers.py:ask_each",
        "while True",
    ): "a bounded number of tries, each with a timeout",
    ("learner_jax/hosts/peers.py:Peers.all_here", "self._changed.wait()"): _WATCHED,
    ("learner_jax/hosts/peers.py:Peers.settle", "self._changed.wait()"): _WATCHED,
    ("learner_jax/hosts/peers.py:Peers.fail", "asyncio.Event().wait()"): "the process is being ended",
    ("learner_jax/hosts/peers.py:Peers._beat", "while True"): "the watch itself",
    ("learner_jax/hosts/peers.py:Peers.leave", "self._changed.wait()"): _DEADLINE,
    ("learner_jax/hosts/roll_call.py:Roll.complete", "self.changed.wait()"): _DEADLINE,
    ("learner_jax/hosts/roll_call.py:come", "while (remaining := (deadline - loop.time())) > 0"): _DEADLINE,
    ("learner_jax/hosts/tunnel.py:to_service", "while True"): _DEADLINE,
    (
        "learner_jax/hosts/tunnel.py:serve_client.carry",
        "never.wait()",
    ): "JAX would abort the process if its connection closed; a task of a daemon thread",
    (
        "learner_jax/hosts/tunnel.py:_first",
        "asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)",
    ): "lasts as long as the connection that it carries",
    (
        "learner_jax/hosts/tunnel.py:_first",
        "asyncio.gather(*tasks, return_exceptions=True)",
    ): "cancelled just before",
    ("learner_jax/hosts/watch.py:Watch.join", "self._thread.join()"): "its loop was told to stop just before",
    (
        "learner_jax/hosts/watch.py:Watch._call",
        "asyncio.run_coroutine_threadsafe(work, self._loop).result()",
    ): _WATCHED,
    (
        "learner_jax/hosts/watch.py:Watch._close",
        "asyncio.gather(*others, return_exceptions=True)",
    ): "cancelled just before",
    ("learner_jax/hosts/watch.py:Watch._serve", "self._welcomed.wait()"): _DEADLINE,
    (
        "serving_bridge/routing/dispatch.py:Dispatcher.watch",
        "while True",
    ): "a worker's service; each poll has a timeout",
    ("serving_bridge/rollout/dialogs.py:_Blocking._by_threads", "asyncio.gather(*running)"): (
        "within rollout.reward_timeout_s, which the caller keeps"
    ),
    (
        "serving_bridge/rollout/dialogs.py:_Blocking._by_threads",
        "asyncio.gather(*helpers, return_exceptions=True)",
    ): "of cancelled tasks that catch nothing",
    (
        "serving_bridge/rollout/group_maker.py:GroupMaker._place",
        "self._places.acquire()",
    ): "groups before it end within rollout.episode_timeout_s, and give their places back",
    ("serving_bridge/rollout/groups.py:complete_group", "while (chosen := _chosen(tasks, size)) is None"): _EPISODES,
    (
        "serving_bridge/rollout/groups.py:complete_group",
        "asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)",
    ): _EPISODES,
    (
        "serving_bridge/rollout/groups.py:complete_group",
        "asyncio.gather(*tasks, return_exceptions=True)",
    ): "cancelled just before",
    (
        "serving_bridge/rollout/sampling.py:Sampler._request",
        "while True",
    ): "rollout.max_attempts tries, each with a timeout",
    ("serving_bridge/rollout/sampling.py:all_or_none", "asyncio.gather(*tasks)"): _EPISODES,
    (
        "serving_bridge/rollout/sampling.py:all_or_none",
        "asyncio.gather(*tasks, return_exceptions=True)",
    ): "cancelled just before",
    (
        "serving_bridge/rollout/running.py:RunningRollouts._cancel",
        "asyncio.gather(*tasks, return_exceptions=True)",
    ): "cancelled just before",
    ("serving_bridge/processes/guard.py:run", "while status is None"): "lasts as long as the command that it guards",
    (
        "serving_bridge/processes/guard.py:kill_marked",
        "while (alive := [pid for pid in _process_ids() if pid != os.getpid() and entry in _environment(pid)])",
    ): _GUARD,
    (
        "serving_bridge/processes/guard.py:_end_leftovers",
        "while descendants(os.getpid()) and time.monotonic() < deadline",
    ): _GUARD,
    (
        "serving_bridge/processes/guard.py:_end_at_once",
        "while (status := _reap(child)) is None and time.monotonic() < deadline",
    ): _GUARD,
    ("serving_bridge/processes/guard.py:_kill_descendants", "while (left := descendants(os.getpid()))"): _GUARD,
    (
        "serving_bridge/telemetry/wait_reporter.py:reported_waits.run",
        "while not ended.wait(poll_s)",
    ): "a daemon thread's service",
    ("serving_bridge/fleet/weight_round.py:_settled", "while not task.done()"): _SETTLED,
    ("serving_bridge/fleet/weight_round.py:_settled", "asyncio.wait([task])"): _SETTLED,
    (
        "tools/launch/job.py:Job._watch",
        "while not until() and (not self._should_stop())",
    ): "lasts as long as a process of the run, which bounds its own waits; one that ends is seen at once",
    (
        "tools/launch/job.py:Job._meanwhile.watched",
        "while not task.done() and (not self._should_stop())",
    ): "requests time out",
    ("tools/launch/job.py:Job._meanwhile.watched", "asyncio.wait([task])"): "cancelled just before",
    (
        "tools/launch/xmanager_backend.py:XManager.start",
        "subprocess.run(command, env=process_environment(os.environ, also), check=False)",
    ): "the run itself, in the foreground",
    ("learner_jax/training/fine_tuning.py:_ahead", "pending.result()"): "a computation of this process",
    (
        "tools/learner.py:_convert_start",
        "subprocess.run([*command, *family], check=False)",
    ): "a conversion, whose time the model's size decides",
    ("tools/queue_rewards.py:_serve", "stopped.wait()"): "serves until a person stops it",
    ("tools/view.py:attach", "while True"): "a person watches, and ends it",
    ("tools/weights.py:watch", "while True"): "a person watches, and ends it",
}


def modules() -> list[Path]:
    found = [path for package in PACKAGES for path in sorted((REPOSITORY / package).rglob("*.py"))]
    return [path for path in found if not str(path.relative_to(REPOSITORY)).startswith(LEFT_OUT)]


def test_every_wait_has_a_bound_or_a_reason():
    found = {}
    for path in modules():
        for finding in scan(path.read_text()):
            name = path.relative_to(REPOSITORY).as_posix()
            found[f"{name}:{finding.where}", finding.code] = f"{name}:{finding.line}: {finding.why}: {finding.code}"
    unbounded = [text for key, text in found.items() if key not in ALLOWED]
    assert not unbounded, "\n".join(["use learner_jax.runtime.waits.Waits, or say in ALLOWED why not:", *unbounded])
    assert not [key for key in ALLOWED if key not in found], "what is allowed no longer exists"


@pytest.mark.parametrize(
    ("code", "count"),
    [
        ("event.wait()", 1),
        ("event.wait(3)", 0),
        ("event.wait(timeout=wait.remaining_s)", 0),
        ("event.wait(timeout=None)", 1),
        ("thread.join()", 1),
        ("', '.join(names)", 0),
        ("future.result()", 1),
        ("future.result(timeout=3)", 0),
        ("async def f():\n    task.result()", 0),
        ("queue.get()", 1),
        ("table.get('name')", 0),
        ("lock.acquire()", 1),
        ("process.communicate()", 1),
        ("import subprocess\nsubprocess.run(['ls'])", 1),
        ("import subprocess\nsubprocess.run(['ls'], timeout=3)", 0),
        ("from concurrent.futures import wait\nwait([future])", 1),
        ("from concurrent.futures import wait\nwait([future], timeout=3)", 0),
        ("import select\nselect.select([a], [], [])", 1),
        ("import select\nselect.select([a], [], [], 3)", 0),
        ("async def f():\n    await asyncio.gather(a, b)", 1),
        ("async def f():\n    await asyncio.wait([a])", 1),
        ("async def f():\n    await asyncio.wait([a], timeout=3)", 0),
        ("async def f():\n    async with asyncio.timeout(3):\n        await asyncio.gather(a, b)", 0),
        ("async def f():\n    async with wait.bound():\n        await event.wait()", 0),
        ("async def f():\n    async with session:\n        await event.wait()", 1),
        ("asyncio.run(main())", 0),
        ("while not done():\n    time.sleep(1)", 1),
        ("while not done():\n    wait.sleep(1)", 0),
        ("while not done():\n    wait.check()\n    time.sleep(1)", 0),
        ("while not done():\n    supervisor.check()\n    time.sleep(1)", 1),
        ("async def f():\n    while True:\n        await asyncio.sleep(1)", 1),
        ("async def f():\n    while True:\n        await wait.pause(1)", 0),
        ("while not ended.wait(1):\n    look()", 1),
        ("while wait.remaining_s and not ended.wait(1):\n    look()", 0),
        ("while items:\n    items.pop()", 0),
    ],
)
def test_the_scanner_tells_waits_with_a_bound_from_those_without(code: str, count: int):
    assert len(scan(code)) == count


def test_a_finding_says_where_it_is():
    (finding,) = scan("class A:\n    def run(self):\n        self.event.wait()\n")
    assert (finding.line, finding.where, finding.code) == (3, "A.run", "self.event.wait()")
    assert finding.why == ".wait() without timeout"
