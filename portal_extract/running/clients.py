"""Clients of dask clusters: made for this process, started through a batch system, or already running."""

from __future__ import annotations

import importlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from portal_extract.errors import ClusterError, UsageError
from portal_extract.running.events import Note, Observer, ignore

if TYPE_CHECKING:
    from distributed import Client

THREADS, LOCAL = "threads", "local"
CLUSTERS = {
    "slurm": ("dask_jobqueue", "SLURMCluster"),
    "lsf": ("dask_jobqueue", "LSFCluster"),
    "sge": ("dask_jobqueue", "SGECluster"),
    "pbs": ("dask_jobqueue", "PBSCluster"),
    "moab": ("dask_jobqueue", "MoabCluster"),
    "oar": ("dask_jobqueue", "OARCluster"),
    "htcondor": ("dask_jobqueue", "HTCondorCluster"),
    "kubernetes": ("dask_kubernetes.operator", "KubeCluster"),
}
_CONNECT_WITHIN_S = 20
_OWN_SETTINGS = ("kind", "jobs")
# a terminal sends Control-C to all processes; this one alone answers, and ends the others
_IGNORE_CONTROL_C = """
import signal

def dask_setup(worker):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
"""
# workers do not inherit threads or locks that are in use; what is at work is not held by dask, so
# its own bookkeeping of memory would only get in the way
_CONFIG = {
    "distributed.worker.multiprocessing-method": "spawn",
    "distributed.worker.daemon": True,
    "distributed.scheduler.active-memory-manager.start": False,
}


@dataclass(frozen=True, slots=True)
class SchedulerOptions:
    """Where the work is done.

    Attributes
    ----------
    scheduler
        ``threads`` of this process, a ``local`` cluster of processes, the address of a dask scheduler
        (``tcp://HOST:PORT``), or a scheduler file (``FILE.json``).
    processes
        Worker processes of a ``local`` cluster; None for one per core.
    threads
        Units that each process of a ``local`` cluster does at a time; None for what the cores allow.
    cluster
        Batch system that starts the workers, one of :data:`CLUSTERS`; None for none.
    settings
        Its settings: ``jobs`` (how many are submitted), and what the class of dask-jobqueue or
        dask-kubernetes takes.
    dashboard
        Serve dask's dashboard.
    """

    scheduler: str = THREADS
    processes: int | None = None
    threads: int | None = None
    cluster: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    dashboard: bool = False

    def check(self) -> None:
        """Refuse what makes no sense.

        Raises
        ------
        UsageError
            Saying what to write instead.
        """
        known = self.scheduler in (THREADS, LOCAL) or "://" in self.scheduler or self.is_file
        if not known:
            raise UsageError(
                f"--scheduler {self.scheduler}: write threads, local, an address such as tcp://HOST:8786, "
                "or a scheduler file that ends with .json"
            )
        if self.is_file and not Path(self.scheduler).is_file():
            raise UsageError(f"--scheduler {self.scheduler}: no such file; does the scheduler run?")
        if self.cluster is not None and self.cluster not in CLUSTERS:
            raise UsageError(f"--cluster {self.cluster}: is none of {', '.join(CLUSTERS)}")
        if self.cluster is not None and self.scheduler != THREADS:
            raise UsageError("--cluster starts a scheduler of its own: leave --scheduler out")
        if self.processes is not None and self.scheduler != LOCAL:
            raise UsageError("--processes belongs to --scheduler local")
        if self.dashboard and self.scheduler == THREADS and self.cluster is None:
            raise UsageError("--dask-dashboard needs dask: add --scheduler or --cluster")
        if self.dashboard and not self.is_elsewhere and find_spec("bokeh") is None:
            raise UsageError("--dask-dashboard needs bokeh: pip install 'portal-extract[cluster]'")

    @property
    def is_file(self) -> bool:
        """Whether the scheduler is named by a file."""
        return self.scheduler.endswith(".json")

    @property
    def is_elsewhere(self) -> bool:
        """Whether the scheduler is running already."""
        return "://" in self.scheduler or self.is_file


@contextmanager
def open_client(options: SchedulerOptions, observer: Observer = ignore) -> Iterator[Client | None]:
    """Connect to the place where the work is to be done, and start it if need be.

    Parameters
    ----------
    options
        Which place.
    observer
        Told where the dashboard is.

    Yields
    ------
    distributed.Client or None
        None for threads of this process. What was started ends with the context.

    Raises
    ------
    UsageError
        Options that make no sense, or a package that is not installed.
    ClusterError
        The scheduler does not answer.
    """
    options.check()
    if options.scheduler == THREADS and options.cluster is None:
        yield None
        return
    import dask
    import distributed  # noqa: F401 - its defaults must be there before, or they would be undone with ours

    with ExitStack() as stack:
        stack.enter_context(dask.config.set(_CONFIG))
        if options.cluster is not None:
            client = _connect(stack, _start_jobs(stack, options), f"--cluster {options.cluster}")
        elif options.scheduler == LOCAL:
            client = _connect(stack, _start_processes(stack, options), "--scheduler local")
        else:
            what = (
                {"scheduler_file": options.scheduler} if options.is_file else {"address": options.scheduler}
            )
            client = _connect(stack, None, f"--scheduler {options.scheduler}", **what)
        if options.dashboard:
            observer(Note(f"dask dashboard: {client.dashboard_link}"))
        yield client


def _connect(stack: ExitStack, cluster: Any, what: str, **address: str) -> Client:
    from distributed import Client

    try:
        if cluster is not None:
            client = Client(cluster, set_as_default=False)  # type: ignore[no-untyped-call]
        else:
            client = Client(**address, timeout=_CONNECT_WITHIN_S, set_as_default=False)  # type: ignore[no-untyped-call]
    except (OSError, TimeoutError, ValueError) as error:
        raise ClusterError(f"{what}: no dask scheduler answers ({error})") from error
    stack.callback(client.close, timeout=2)
    return client


def _start_processes(stack: ExitStack, options: SchedulerOptions) -> Any:
    """Start worker processes on this machine."""
    import logging

    from distributed import LocalCluster

    cores = len(os.sched_getaffinity(0))
    processes = options.processes or cores
    scratch = tempfile.mkdtemp(prefix="portal-extract-dask-")
    stack.callback(shutil.rmtree, scratch, ignore_errors=True)
    cluster = LocalCluster(  # type: ignore[no-untyped-call]
        n_workers=processes,
        threads_per_worker=options.threads or max(1, cores // processes),
        processes=True,
        host="127.0.0.1",
        memory_limit=0,
        preload=[_IGNORE_CONTROL_C],
        local_directory=scratch,
        dashboard_address="127.0.0.1:8787" if options.dashboard else "127.0.0.1:0",
        worker_dashboard_address=None,
        silence_logs=logging.CRITICAL,
    )
    stack.callback(cluster.close, timeout=10)
    return cluster


def _start_jobs(stack: ExitStack, options: SchedulerOptions) -> Any:
    """Submit the jobs of a batch system that are the workers."""
    kind = options.cluster or ""
    module, name = CLUSTERS[kind]
    package = module.split(".")[0].replace("_", "-")
    try:
        cluster_class = getattr(importlib.import_module(module), name)
    except ImportError as error:
        extra = "cluster" if package == "dask-jobqueue" else package
        raise UsageError(
            f"--cluster {kind} needs {package}: pip install "
            + ("'portal-extract[cluster]'" if extra == "cluster" else package)
        ) from error
    command = getattr(getattr(cluster_class, "job_cls", None), "submit_command", None)
    if command and shutil.which(command.split()[0]) is None:
        raise UsageError(
            f"--cluster {kind}: {command.split()[0]} is not here: run this where jobs are submitted from"
        )
    settings = {key: value for key, value in options.settings.items() if key not in _OWN_SETTINGS}
    if command:
        dashboard = {"dashboard_address": ":8787" if options.dashboard else ":0"}
        settings["scheduler_options"] = {**dashboard, **settings.get("scheduler_options", {})}
    try:
        cluster = cluster_class(**settings)
    except (TypeError, ValueError) as error:
        raise UsageError(f"[cluster] settings for --cluster {kind}: {str(error).splitlines()[0]}") from error
    stack.callback(_close_quietly, cluster)
    jobs = int(options.settings.get("jobs", 1))
    if command:
        _submit(cluster, jobs, f"--cluster {kind}")
    else:
        cluster.scale(jobs)
    return cluster


def _submit(cluster: Any, jobs: int, what: str) -> None:
    """Submit jobs, the first one alone: what is wrong with it is wrong with all."""

    async def settle() -> None:
        await cluster

    for n_jobs in (1, jobs - 1):
        for _ in range(n_jobs):
            cluster.worker_spec.update(cluster.new_worker_spec())
        try:
            cluster.sync(settle)
        except RuntimeError as error:
            said = str(error).split("stderr:")[-1].strip()
            raise ClusterError(f"{what}: the job was not taken: {said}") from error


def _close_quietly(cluster: Any) -> None:
    # where a job was not taken, closing cancels the others and then fails an assertion of dask's own; it need
    # not be tried again when the program ends
    with suppress(Exception):
        cluster.close(timeout=5)
    cluster.shutdown_on_close = False
