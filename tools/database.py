"""Prepares the PostgreSQL database of a run, as its owner, so that workers and learners need no such rights.

    python -m tools.database migrate --config C [--set ...] [--worker ROLE] [--learner ROLE] [--gateway ROLE]

makes the run's schema or brings it up to date, and gives the roles what each needs in it and nothing else. Run it
as the user who is to own the schema (PGUSER, or the user in store.database); hosts then connect as their roles.
"""

from __future__ import annotations

from configs.load import load_config
from learner_jax.runtime import printable
from serving_bridge.database import DatabaseError, is_postgres, open_database
from serving_bridge.feedback import FEEDBACK
from serving_bridge.recordings import RECORDINGS
from serving_bridge.tenants import TENANTS
from tools.assembly import clear_errors, config_arguments, run_paths
from tools.command_line import command_parser


def main(argv: list[str] | None = None) -> None:
    parser = command_parser("database", __doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    migrate = commands.add_parser("migrate", help="make the schema or bring it up to date, and give roles their rights")
    config_arguments(migrate)
    migrate.add_argument("--worker", default="", metavar="ROLE", help="role that rollout workers connect as")
    migrate.add_argument("--learner", default="", metavar="ROLE", help="role that learners connect as")
    migrate.add_argument("--gateway", default="", metavar="ROLE", help="role that gateways connect as")
    arguments = parser.parse_args(argv)
    with clear_errors():
        config = load_config(arguments.config, arguments.overrides)
        url = run_paths(config).database
        if not is_postgres(url):
            raise DatabaseError(f"store.database is {url}: only a schema on PostgreSQL is prepared ahead")
        from serving_bridge.database import roles as postgres_roles

        asked: dict[postgres_roles.Part, str] = {
            "worker": arguments.worker,
            "learner": arguments.learner,
            "gateway": arguments.gateway,
        }
        if arguments.gateway:
            for schema in (TENANTS, RECORDINGS, FEEDBACK):
                open_database(url, timeout_s=config.store.database_timeout_s, schema=schema).close()
        roles = {part: role for part, role in asked.items() if role}
        postgres_roles.prepare(url, roles, timeout_s=config.store.database_timeout_s)
        told = "".join(f", {part} {role}" for part, role in roles.items())
        print(printable(f"the schema of {config.run.name} is ready{told}"))


if __name__ == "__main__":
    main()
