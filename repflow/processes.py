"""Processes: new ones that inherit no thread, and groups that share an evaluation."""

import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import BaseContext
from threading import Thread


def fresh_processes(*modules: str) -> BaseContext:
    """A context of `multiprocessing` whose processes are forks of one that has loaded `modules` and computed nothing.

    Such a process is as good as a new one, and starts seconds sooner. A fork of the calling process could wait for
    ever: it inherits locks and pools, such as FFmpeg's, but not the threads that serve them. ctrl-C does not reach
    these processes: only the caller acts on it. All callers share the process that is forked, which has loaded the
    modules of the first caller.

        process = fresh_processes("repflow.video").Process(target=work)
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(modules))
    resource_tracker.ensure_running()  # first, for it unblocks the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # which they inherit
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)  # were it ignored, a ctrl-C would be lost
    # The modules take seconds to load. A process asked for in that time starts after it, even if a ctrl-C has ended the
    # caller, and then misses the caller's locks. This one needs none.
    first = context.Process(target=int)
    first.start()
    first.join()
    return context


def end_with_parent() -> None:
    """End the process that calls this as soon as its parent has ended, even if the parent was killed."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        parent.join()
        os._exit(1)  # nobody is left to wait for

    Thread(target=wait, daemon=True).start()


@contextmanager
def process_group() -> Iterator[bool]:
    """Joins the processes that torchrun or srun started, if one did. Yields whether this one is the first, which
    writes."""
    if "WORLD_SIZE" not in os.environ and "SLURM_NTASKS" in os.environ:
        os.environ |= _places_by_slurm()
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield True
        return
    # Here, because every fresh process loads the caller's script anew, and with it this module.
    import torch
    import torch.distributed as dist

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield dist.get_rank() == 0
    finally:
        dist.destroy_process_group()


def _places_by_slurm() -> dict[str, str]:
    """What torchrun would tell this process, from what srun told it; nothing where srun did not start it."""
    from lightning_fabric.plugins.environments import SLURMEnvironment

    if not SLURMEnvironment.detect():
        return {}
    told = {"WORLD_SIZE": "SLURM_NTASKS", "RANK": "SLURM_PROCID", "LOCAL_RANK": "SLURM_LOCALID"}
    host = SLURMEnvironment.resolve_root_node_address(os.environ.get("SLURM_NODELIST", "127.0.0.1"))
    number = sum(int(os.environ.get(name, 0)) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))  # steps run side by side
    address = {"MASTER_ADDR": host, "MASTER_PORT": str(15_000 + number % 10_000)}
    places = {name: os.environ[slurm] for name, slurm in told.items()}
    return places | {name: os.environ.get(name, value) for name, value in address.items()}
