"""A rank: who it is among the others, and the one place where the process group is made."""

from __future__ import annotations

import datetime
import os
import re
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from ..profiles.capture.comm import CommRecorder

# For ranks to find each other.
JOIN_SECONDS = 600
# For a collective: the supervisor finds hangs long before, and blames the rank that others wait for; a backend's own
# limit ends the rank that waits.
COLLECTIVE_SECONDS = 6 * 3600
RECORDED_COLLECTIVES = 200
# How gloo words the loss of a peer, in a plain RuntimeError: with the place in its source first.
_GLOO = re.compile(r"\[\S*gloo/\S+\]")
# Errors of torch.distributed that are a rank's own: a port that is taken, memory that has run out.
_OWN = re.compile(r"EADDRINUSE|failed to listen|out of memory", re.IGNORECASE)
# Where the supervisor of several hosts has the ranks' store made, "HOST PORT", and the number of a host's first rank.
STORE_VARIABLE = "SCALELAB_STORE"
FIRST_RANK_VARIABLE = "SCALELAB_FIRST_RANK"
# "1" where several hosts write to one folder on a shared disk.
SHARED_VARIABLE = "SCALELAB_SHARED"
# On a single host the store listens on a socket that the ranks inherit.
LISTENER_VARIABLE = "SCALELAB_STORE_FD"


@dataclass(frozen=True, kw_only=True)
class Rank:
    """One rank of a run, as torchrun's environment variables describe it."""

    rank: int
    local_rank: int
    world_size: int
    local_world_size: int

    @classmethod
    def from_environment(cls, world_size: int) -> Rank:
        """The rank that torchrun started on this host, one of `world_size` on all hosts."""
        local = int(os.environ["LOCAL_RANK"])
        return cls(
            rank=first_rank() + local,
            local_rank=local,
            world_size=world_size,
            local_world_size=int(os.environ["LOCAL_WORLD_SIZE"]),
        )

    def environment(self, host: str, port: int) -> dict[str, str]:
        """The variables that torchrun would set, for libraries that read them. The store is at `host` and `port`."""
        return {
            "RANK": str(self.rank),
            "LOCAL_RANK": str(self.local_rank),
            "WORLD_SIZE": str(self.world_size),
            "LOCAL_WORLD_SIZE": str(self.local_world_size),
            "MASTER_ADDR": host,
            "MASTER_PORT": str(port),
        }


def first_rank() -> int:
    """The number of this host's first rank."""
    return int(os.environ.get(FIRST_RANK_VARIABLE, "0"))


def keeps_checkpoints() -> bool:
    """Whether all ranks write to one folder: always on a single host."""
    return store_of_hosts() is None or os.environ.get(SHARED_VARIABLE) == "1"


def store_of_hosts() -> tuple[str, int] | None:
    """Host and port of the store of a run on several hosts; None on a single one."""
    host, _, port = os.environ.get(STORE_VARIABLE, "").partition(" ")
    return (host, int(port)) if port else None


def join_ranks(rank: Rank, device: str, recorder: CommRecorder | None = None) -> torch.device:
    """Join the ranks; returns this rank's device. NCCL on CUDA, gloo on CPU; `recorder` is told of every collective.

    Every collective of a run goes through the group made here. A rank of a run never takes it apart: gloo has been seen
    to wait for ever there for peers that have left. It ends with the process.
    """
    import torch
    from torch import distributed
    from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage] (public, but not in __all__)

    backend = "nccl" if device == "cuda" else "gloo"
    here = torch.device("cuda", rank.local_rank) if device == "cuda" else torch.device("cpu")
    if device == "cuda":
        torch.cuda.set_device(here)
    if recorder is not None:
        from ..profiles.capture.group import recorded_backend

        backend = recorded_backend(backend, recorder)
    if sys.platform == "linux" and rank.world_size == rank.local_world_size:
        # All ranks on this host: the loopback always answers, the host's own name need not.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    # Lists the last collectives, for the day on which ranks hang.
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", str(RECORDED_COLLECTIVES))
    store = None
    if LISTENER_VARIABLE in os.environ or STORE_VARIABLE in os.environ:
        descriptor = os.environ.get(LISTENER_VARIABLE)
        store = TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            rank.world_size,
            is_master=rank.rank == 0,
            timeout=datetime.timedelta(seconds=JOIN_SECONDS),
            master_listen_fd=int(descriptor) if descriptor is not None and rank.rank == 0 else None,
            wait_for_workers=False,
        )
    distributed.init_process_group(
        backend,
        store=store,
        rank=rank.rank,
        world_size=rank.world_size,
        timeout=datetime.timedelta(seconds=COLLECTIVE_SECONDS),
        device_id=here if device == "cuda" else None,
    )
    return here


def control_group() -> Any:
    """A gloo group of its own for what ranks have to agree on: apart from what is measured."""
    from torch import distributed

    return distributed.new_group(backend="gloo")


def largest_over(group: Any) -> Callable[[list[int]], list[int]]:
    """The largest of each number over the ranks of `group`; called on all of them together."""
    import torch
    from torch import distributed

    def combine(numbers: list[int]) -> list[int]:
        tensor = torch.tensor(numbers)
        distributed.all_reduce(tensor, distributed.ReduceOp.MAX, group=group)
        return tensor.tolist()

    return combine


def listen_on_free_port() -> socket.socket:
    """A listening socket on a port that the kernel picked, so that no two runs can race for it."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", 0))
    listener.listen(1024)
    return listener


def is_communication_error(error: BaseException) -> bool:
    """Whether `error`, or what it was raised in handling of, is a collective's failure: mostly another rank's doing."""
    from torch import distributed

    seen, met = error, set[int]()
    while seen is not None and id(seen) not in met:
        met.add(id(seen))
        if isinstance(seen, distributed.DistError) and not _OWN.search(str(seen)):
            return True
        if type(seen) is RuntimeError and _GLOO.match(str(seen)):
            return True
        seen = seen.__cause__ or seen.__context__
    return False
