"""Explorers on a Ray cluster: the search goes on when one of them is lost, or a node with all of its own."""

import os
import re
import socket
from dataclasses import dataclass, field

import cv2
import ray
from ray.exceptions import ObjectLostError, RayActorError

from mzlib.go_explore.dynamic import Cut
from mzlib.go_explore.workers import Explorer, Standing, Task, Workers


class RemoteExplorer(Explorer):
    """An explorer on a node of the cluster; RuntimeError if its game doesn't begin with the search's `first_state`."""

    def __init__(self, config, first_state: bytes):
        cv2.setNumThreads(1)
        super().__init__(config)
        if self.first_state != first_state:
            raise RuntimeError("its emulator begins with another state; install the same ale-py on every node")


@dataclass(eq=False)
class Remote:
    """What is known here of one explorer there."""

    actor: ray.actor.ActorHandle
    started: bool = False
    held: int = 0  # messages it has
    cut: Cut | None = None  # not yet told
    news: dict[bytes, Standing] = field(default_factory=dict)  # not yet told


class ClusterWorkers(Workers):
    """Explorers on a Ray cluster, one a CPU (or `count`); otherwise as `Workers`.

    When an explorer is lost, the tasks that it had are given again to the others, and a new one starts on the next
    free CPU, of a node that joins perhaps. Episodes depend on nothing but their tasks, so the archive becomes the same.

    Errors: ConnectionError if there is no such cluster; RuntimeError if an explorer can't start there, if none has
    started for `PATIENCE` seconds, or if they die without finishing anything.
    """

    PATIENCE = 300.0  # seconds without any explorer: a node may take minutes to come
    DEATHS = 3  # an explorer, without an episode in between

    def __init__(self, config, count: int = 0):
        super().__init__(config, 1)  # its explorer, the one here, only keeps what new ones are to be told
        self.cluster, self.config, self.cut = config.cluster, config, None
        self.joined = not ray.is_initialized()
        if self.joined:
            join(self.cluster, count)
        self.count = count or max(1, int(ray.cluster_resources().get("CPU", 0)))
        self.explorers = ray.remote(num_cpus=1)(RemoteExplorer)
        self.remotes: list[Remote] = []
        self.out: dict[ray.ObjectRef, tuple[Remote, list[Task]]] = {}
        self.deaths = 0  # since the last episode
        for _ in range(self.count):
            self._start()

    def __exit__(self, *_) -> None:
        for remote in self.remotes:
            ray.kill(remote.actor)
        if self.joined:
            ray.shutdown()

    def tell(self, standings: dict[bytes, Standing]) -> None:
        super().tell(standings)
        for remote in self.remotes:
            if remote.started:
                remote.news |= standings

    def recut(self, cut: Cut) -> None:
        super().recut(cut)
        self.cut = cut
        for remote in self.remotes:
            remote.cut, remote.news = cut, {}

    def give(self, tasks: list[Task]) -> None:
        super().give(tasks)
        self._feed_all()

    def _start(self) -> None:
        """Ask for an explorer; it starts when a CPU is free, and then answers this message without tasks."""
        remote = Remote(self.explorers.remote(self.config, self.explorer.first_state))
        self.remotes.append(remote)
        self._send(remote, [])

    def _send(self, remote: Remote, chunk: list[Task]) -> None:
        self.out[remote.actor.work.remote(remote.cut, remote.news, chunk)] = (remote, chunk)
        remote.cut, remote.news = None, {}
        remote.held += 1

    def _feed_all(self) -> None:
        for remote in self.remotes:
            while self.tasks and remote.started and remote.held < self.AHEAD:
                self._send(remote, [self.tasks.popleft() for _ in range(min(self.CHUNK, len(self.tasks)))])

    def _work(self) -> None:
        """Wait until an explorer reports or is found lost."""
        some = any(remote.started for remote in self.remotes)
        ready, _ = ray.wait(list(self.out), timeout=None if some else self.PATIENCE)
        if not ready:
            raise RuntimeError(
                f"cluster={self.cluster!r}: no explorer has started for {self.PATIENCE:g} s; "
                "give the cluster free CPUs and run again to resume"
            )
        remote, chunk = self.out[ready[0]]
        try:
            self.finished |= ray.get(ready[0])
        except (RayActorError, ObjectLostError) as error:
            self._replace(remote, error)
        else:
            del self.out[ready[0]]
            remote.held -= 1
            if chunk:
                self.deaths = 0
            if not remote.started:
                remote.started, remote.cut, remote.news = True, self.cut, dict(self.explorer.known)
        self._feed_all()

    def _replace(self, remote: Remote, error: Exception) -> None:
        """Take back the tasks of a lost explorer and ask for another."""
        if getattr(error, "actor_init_failed", False):
            reason = str(error).strip().splitlines()[-1]
            raise RuntimeError(f"cluster={self.cluster!r}: an explorer can't start there: {reason}") from error
        self.deaths += 1
        if self.deaths > self.DEATHS * self.count:
            raise RuntimeError(f"cluster={self.cluster!r}: explorers keep dying; run again to resume") from error
        ray.kill(remote.actor)  # where only the connection was lost
        self.remotes.remove(remote)
        lost = [message for message, (holder, _) in self.out.items() if holder is remote]
        self.tasks.extendleft(reversed([task for message in lost for task in self.out.pop(message)[1]]))
        self._start()


def join(address: str, cpus: int = 0) -> None:
    """Connect to the Ray cluster at `address`, or start one of `cpus` CPUs (0: all) on this machine for "local"."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else a cluster started here reports to Ray's makers
    here = {"num_cpus": cpus or None, "include_dashboard": False} if address == "local" else {}
    try:
        if to := re.fullmatch(r"(?:ray://)?([^/:]+):(\d+)", address):
            socket.create_connection((to[1], int(to[2])), timeout=10).close()  # Ray itself tries for minutes
        ray.init(address, logging_level="error", log_to_driver=False, **here)
    except (OSError, ValueError) as error:
        raise ConnectionError(f"cluster={address!r}: no Ray there ({error}); use local, auto or host:port") from error
