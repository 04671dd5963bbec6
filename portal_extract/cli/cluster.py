"""Options that say where the work is done."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from portal_extract.cli import params
from portal_extract.cli.config import CLUSTER_TABLE
from portal_extract.cli.grouped import option, stack_options
from portal_extract.running.clients import CLUSTERS, THREADS, SchedulerOptions

scheduler_options = stack_options(
    option("--scheduler", metavar="WHERE", group=params.RUN, help="threads of this process, local (processes on this machine), the address tcp://HOST:PORT of a dask scheduler, or a scheduler file FILE.json.  [default: threads]"),
    option("--processes", type=click.IntRange(1), group=params.RUN, help="Worker processes of --scheduler local.  [default: one per core]"),
    option("--cluster", type=click.Choice(list(CLUSTERS)), group=params.RUN, help="Start the workers as jobs of a batch system, with the settings of the table [cluster] of the --config file."),
    option("--total-requests", type=click.IntRange(1), default=512, group=params.RUN, help="Concurrent requests of all worker processes together; --requests is for one of them."),
    option("--dask-dashboard", is_flag=True, group=params.RUN, help="Serve dask's dashboard and print its address."),
    option("--json-progress", is_flag=True, group=params.TALK, help="Write progress, warnings and errors as JSON lines on standard error."),
    option("--on-error", type=click.Choice(["stop", "skip"]), default="stop", group=params.RUN, help="When something of a tilt series fails: stop after finishing what runs, or skip it and end with exit code 3."),
)  # fmt: skip

DEFAULTS: dict[str, Any] = {
    "scheduler": None,
    "processes": None,
    "cluster": None,
    "total_requests": 512,
    "dask_dashboard": False,
    "on_error": "stop",
    "json_progress": False,
}
"""For commands that share options with an extraction but do not run one."""


def chosen_scheduler(values: Mapping[str, Any]) -> SchedulerOptions:
    """Build the options of the scheduler from parsed values and the table ``[cluster]`` of the option file.

    Raises
    ------
    UsageError
        They contradict each other.
    """
    context = click.get_current_context(silent=True)
    table: dict[str, Any] = {} if context is None else context.meta.get(CLUSTER_TABLE, {})
    cluster = values["cluster"]
    if cluster is None and values["scheduler"] is None:
        cluster = table.get("kind")
    chosen = SchedulerOptions(
        scheduler=values["scheduler"] or THREADS,
        processes=values["processes"],
        threads=values["workers"] if values["scheduler"] == "local" else None,
        cluster=cluster,
        settings=table if cluster is not None else {},
        dashboard=values["dask_dashboard"],
    )
    chosen.check()
    return chosen
