"""The commands of `weir`: their names, modules and what each does in a line. Imports nothing, so that help is quick."""

from __future__ import annotations

from typing import NamedTuple


class Command(NamedTuple):
    """A command; `module` has a `main()` that reads `sys.argv`. `configured` ones take --config and --set."""

    module: str
    help: str
    configured: bool = False


#: Heading -> name -> command, in the order that help shows.
GROUPS: dict[str, dict[str, Command]] = {
    "begin": {
        "new": Command("tools.new", "make a folder with a run of your own: configuration, reward and data"),
        "data": Command(
            "tools.data", "show the data of a run: counts, columns, lengths, duplicates, first prompts", configured=True
        ),
        "doctor": Command("tools.doctor", "say what this machine can run, and what is missing"),
        "settings": Command("tools.settings", "list every setting with type, range, default and meaning"),
        "score": Command("tools.score", "score a file of answers with a run's reward or a verifier", configured=True),
        "safety": Command("tools.safety", "judge and redact the texts of a file with the guards"),
        "confidence": Command(
            "tools.confidence", "fit how probably an answer is right, for the gateway", configured=True
        ),
        "plan": Command("tools.plan", "predict the device memory of a train step"),
    },
    "train": {
        "train": Command("tools.train", "run a whole training job on this machine", configured=True),
        "launch": Command("tools.launch.__main__", "launch a run on this machine or a cluster", configured=True),
        "learner": Command("tools.learner", "run the learner alone", configured=True),
        "rollout": Command("tools.rollout", "run one rollout worker alone", configured=True),
        "serve": Command("tools.serve", "run a fleet of vLLM servers alone", configured=True),
        "gateway": Command("tools.gateway", "let users talk to a run's model over OpenAI's API", configured=True),
    },
    "look after a run": {
        "view": Command("tools.view", "show a run live, in the terminal or as a page"),
        "report": Command("tools.report", "write a run's report.html and summary.json"),
        "metrics": Command("tools.metrics", "list the metrics that Prometheus can scrape"),
        "fleet": Command("tools.fleet", "show a run's fleets; change their size; restart their servers"),
        "queue": Command("tools.queue", "show a run's queue; put dead letters back"),
        "weights": Command("tools.weights", "list, compare, verify and roll back published weights"),
        "registry": Command(
            "tools.registry", "register candidates, move aliases such as stable, show lineage and history"
        ),
        "canary": Command(
            "tools.canary", "bring a candidate to all users in small steps that undo themselves; pause, abort, replay"
        ),
        "tenants": Command("tools.tenants", "add tenants, give and take their API keys, set limits, read bills"),
        "sessions": Command("tools.sessions", "show recorded conversations of users; withdraw consent"),
        "feedback": Command("tools.feedback", "bring feedback, look at it, and make training data of it"),
        "database": Command("tools.database", "prepare the PostgreSQL database of a run", configured=True),
    },
    "use a model": {
        "convert": Command("tools.convert", "convert checkpoints to Hugging Face folders and back"),
        "gate": Command(
            "tools.gate", "say whether a candidate may be shown to users, by suites and checks", configured=True
        ),
        "evaluate": Command(
            "tools.evaluate", "evaluate a model on suites of problems, or on a run's held-out ones", configured=True
        ),
    },
    "shell": {
        "completion": Command("tools.completion", "print a completion script for bash, zsh or fish"),
    },
}
COMMANDS: dict[str, Command] = {name: command for group in GROUPS.values() for name, command in group.items()}
