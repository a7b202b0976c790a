"""How the supervisors of several hosts find each other before any rank starts. No torch.

Host 0 listens at `--rendezvous`. The others say what they were asked to run; they are told the run's id and where its
store will be. When each has its folder, all start.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil

from ...profiles.runfolder import RunFolder
from ..config import parse_rendezvous
from ..environment import versions
from ..errors import ConfigError, PreflightError
from ..plan import Plan
from ..ranks import SHARED_VARIABLE, STORE_VARIABLE
from ..text import redacted_value
from .hosts import Hosts
from .wire import MAX_BYTES, Wire, WireError, free_port, listen

RETRY_SECONDS = 0.3
# From one step of the meeting to the next: the time to make a folder.
ANSWER_SECONDS = 60.0
# Somebody who has connected has so long to say who he is, in so many bytes.
HELLO_SECONDS = 10.0
HELLO_BYTES = 1 << 16
ACCEPT_SECONDS = 0.1
# What may differ between the commands given on the hosts.
OWN = ("node_rank", "out", "name", "data", "model")
SAME_VERSIONS = ("scalelab", "torch", "deepspeed", "accelerate")


def gather(plan: Plan, folder: RunFolder, data: str | None) -> Hosts:
    """On host 0: wait for all others, and start with them. `data` is the digest of this host's data.

    Raises PreflightError naming the ranks that did not come within `--rendezvous-timeout`, or for a port that cannot be
    had; ConfigError when a host was asked for a different run.
    """
    host, port = _address(plan)
    try:
        server = listen(host, port)
    except OSError as error:
        raise PreflightError(f"--rendezvous {plan.config.rendezvous}: {error.strerror or error}") from error
    with server:
        wires = _all_others(plan, server, data)
    store = free_port(host)
    for wire in wires.values():
        wire.send(kind="welcome", run_id=folder.run_id, store_port=store, host=socket.gethostname())
    shared = [_answer(wire, node, "ready")["shared"] for node, wire in sorted(wires.items())]
    if plan.config.save_every and not all(shared):
        problem = "--save-every on several hosts needs an --out on a disk that all of them share"
        for wire in wires.values():
            wire.send(kind="refused", why=problem)
        raise PreflightError(problem, hint="leave --save-every out, or give such a folder with --out")
    for wire in wires.values():
        wire.send(kind="start", shared=all(shared))
    _prepare_network(host, store, next(iter(wires.values())).here, shared=all(shared))
    return Hosts(plan, wires, folder, shared=all(shared))


def join(plan: Plan, make_folder: Callable[[str], tuple[RunFolder, bool]], data: str | None) -> tuple[Hosts, RunFolder]:
    """On any other host: find host 0 and start with it.

    `make_folder` takes the run's id and returns this host's folder, and whether host 0 made it on a shared disk. Raises
    PreflightError when host 0 is not there within `--rendezvous-timeout`, ConfigError when it runs something else.
    """
    host, port = _address(plan)
    wire = _connect(plan, host, port)
    config = plan.config.model_dump()
    wire.send(
        kind="hello",
        node=plan.config.node_rank,
        host=socket.gethostname(),
        config=config,
        data=data,
        versions=versions(),
    )
    welcome = _answer(wire, 0, "welcome", plan.config.rendezvous_timeout)
    wire.name = str(welcome.get("host"))
    folder, shared = make_folder(str(welcome["run_id"]))
    wire.send(kind="ready", shared=shared)
    shared = bool(_answer(wire, 0, "start")["shared"])
    _prepare_network(host, int(welcome["store_port"]), wire.here, shared=shared)
    return Hosts(plan, {0: wire}, folder, shared=shared), folder


def _address(plan: Plan) -> tuple[str, int]:
    address = parse_rendezvous(plan.config.rendezvous or "")
    assert address is not None
    return address


def _missing(plan: Plan, wires: Mapping[int, Wire]) -> PreflightError:
    count = len(plan.local_ranks)
    absent = [node for node in range(1, plan.config.nodes) if node not in wires]
    ranks = ", ".join(str(rank) for node in absent for rank in range(node * count, (node + 1) * count))
    hosts = ", ".join(map(str, absent))
    waited = f"{plan.config.rendezvous_timeout:g} s"
    return PreflightError(
        f"host{'s' * (len(absent) > 1)} {hosts} (rank{'s' * (count > 1 or len(absent) > 1)} {ranks}) did not come "
        f"within {waited}",
        hint=f"give the same command there with its own --node-rank, and see that it reaches {plan.config.rendezvous}",
    )


def _all_others(plan: Plan, server: socket.socket, data: str | None) -> dict[int, Wire]:
    """The wires to all other hosts, by node rank. Strangers are dropped; none of them holds the others up."""
    deadline = time.monotonic() + plan.config.rendezvous_timeout
    wires: dict[int, Wire] = {}
    unknown: dict[Wire, float] = {}
    server.settimeout(ACCEPT_SECONDS)
    while len(wires) < plan.config.nodes - 1:
        now = time.monotonic()
        if now > deadline:
            raise _missing(plan, wires)
        with contextlib.suppress(OSError):  # nobody came, or who came left at once
            unknown[Wire(server.accept()[0], HELLO_BYTES)] = now
        for wire, since in list(unknown.items()):
            try:
                hello = wire.receive(0.0)
            except WireError:
                hello = {}
            if hello is None and now - since < HELLO_SECONDS:
                continue
            del unknown[wire]
            if not _greet(plan, wire, hello or {}, wires, data):
                wire.close()
    for wire in unknown:
        wire.close()
    return wires


def _greet(plan: Plan, wire: Wire, hello: Mapping[str, Any], wires: dict[int, Wire], data: str | None) -> bool:
    """Take a host in: False for a stranger, ConfigError on both sides for one that was asked for another run."""
    node = hello.get("node")
    if hello.get("kind") != "hello" or type(node) is not int or not isinstance(hello.get("config"), dict):
        return False
    problem = _unlike(plan, node, hello, data)
    if not problem and (node in wires or not 0 < node < plan.config.nodes):
        problem = f"--node-rank {node} is taken or out of range: every host needs its own, from 0 on"
    if problem:
        with contextlib.suppress(WireError):
            wire.send(kind="refused", why=problem)
        raise ConfigError(problem)
    wire.limit_bytes, wire.name = MAX_BYTES, str(hello.get("host"))
    wires[node] = wire
    return True


def _unlike(plan: Plan, node: int, hello: Mapping[str, Any], data: str | None) -> str | None:
    ours, theirs = plan.config.model_dump(), hello["config"]
    for name, value in ours.items():
        if name not in OWN and theirs.get(name) != value:
            option = "--" + name.replace("_", "-")
            here, there = (redacted_value(name, each) for each in (value, theirs.get(name)))
            return f"{option} is {here!r} on host 0 but {there!r} on host {node}: give the same command"
    # A user's file may lie elsewhere on each host.
    if Path(str(ours["model"])).name != Path(str(theirs.get("model"))).name:
        return f"--model is {ours['model']!r} on host 0 but {theirs.get('model')!r} on host {node}: give the same"
    if hello.get("data") != data:
        return f"host {node} has other data than host 0 (the manifests differ): give both the same --data"
    found, wanted = hello.get("versions"), versions()
    found = found if isinstance(found, dict) else {}
    for name in SAME_VERSIONS:
        if found.get(name) != wanted.get(name):
            return f"{name} is {wanted.get(name)} on host 0 but {found.get(name)} on host {node}: install the same"
    return None


def _connect(plan: Plan, host: str, port: int) -> Wire:
    deadline = time.monotonic() + plan.config.rendezvous_timeout
    while True:
        try:
            return Wire(socket.create_connection((host, port), timeout=max(0.1, deadline - time.monotonic())))
        except OSError as error:
            if time.monotonic() > deadline:
                rank = len(plan.local_ranks) - 1
                waited = f"{plan.config.rendezvous_timeout:g} s"
                raise PreflightError(
                    f"host 0 (rank{'s' * (rank > 0)} 0{f' to {rank}' if rank else ''}) was not at --rendezvous "
                    f"{plan.config.rendezvous} within {waited}: {error.strerror or error}",
                    hint="start the command with --node-rank 0 on the host that has this address",
                ) from error
            time.sleep(RETRY_SECONDS)


def _answer(wire: Wire, node: int, kind: str, seconds: float = ANSWER_SECONDS) -> dict[str, Any]:
    try:
        message = wire.receive(seconds)
    except WireError as error:
        raise PreflightError(f"host {node} left before the start ({error})", hint="see what it printed") from error
    if message is None:
        raise PreflightError(f"host {node} said nothing for {seconds:g} s before the start")
    if message.get("kind") == "refused":
        raise ConfigError(str(message.get("why")))
    if message.get("kind") != kind:
        raise PreflightError(f"host {node} said {message.get('kind')!r} where {kind!r} was due")
    return message


def _prepare_network(host: str, port: int, here: str, *, shared: bool) -> None:
    """Tell the ranks where their store is, and gloo and NCCL on which interface the other hosts are."""
    os.environ[STORE_VARIABLE] = f"{host} {port}"
    os.environ[SHARED_VARIABLE] = str(int(shared))
    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address.partition("%")[0] == here for address in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
            os.environ.setdefault("NCCL_SOCKET_IFNAME", name)
