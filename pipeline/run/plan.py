"""The plan: pools, and their share of the machine's CPUs and GPUs, worked out before anything starts."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipeline.boundary import STAGES
from pipeline.errors import UserError

GPU_STAGES = frozenset({"detect", "keypoint", "embed"})
WORK_SHARE = {"decode": 0.2, "detect": 0.55, "keypoint": 0.08, "align": 0.02, "embed": 0.15}
"""Of one image's time on a CPU, how CPU actors are dealt out between pools: `jobs.bench stages`, with decode as on
photos of a dozen megapixels."""

THREADS_PER_CPU_ACTOR = 4     # a process with torch costs about 700 MB; more threads gain a small network little


class PlanError(UserError):
    """The job cannot run like this; the message shows the sums and what to change."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """What is free for this job: logical CPUs and GPUs."""

    cpus: float
    gpus: float


@dataclass(frozen=True, slots=True)
class PoolPlan:
    """One pool: its stages, how many actors, and what each asks of Ray. `threads` is what an actor really uses."""

    stages: tuple[str, ...]
    actors: int
    cpus: float
    gpus: float
    threads: int

    def __str__(self) -> str:
        gpus = f" + {self.gpus:g} GPU" if self.gpus else ""
        return f"{self.name}: {self.actors} × ({self.cpus:g} CPU{gpus}, {self.threads} threads)"

    @property
    def name(self) -> str:
        """Its stages, as in --pools."""
        return "+".join(self.stages)


@dataclass(frozen=True, slots=True)
class Plan:
    """Pools in order, and the writers at the end, which take no CPU of the budget."""

    pools: tuple[PoolPlan, ...]
    sink_workers: int

    def __str__(self) -> str:
        return " → ".join([*(str(pool) for pool in self.pools), self.sink])

    @property
    def sink(self) -> str:
        """The writers in words."""
        return f"sink: {self.sink_workers} × 0 CPU"


def parse_pools(layout: str) -> list[tuple[tuple[str, ...], int | None]]:
    """Read "decode:8/detect+keypoint+align+embed": pools by "/", stages by "+", the number of actors after ":".

    Raises PlanError unless the five stages stand there once each and in order.
    """
    pools: list[tuple[tuple[str, ...], int | None]] = []
    for part in layout.split("/"):
        names, _, count = part.partition(":")
        if count and not (count.isdecimal() and int(count) > 0):
            raise PlanError(f"--pools {layout}: the number of actors in {part!r} must be a whole number above 0")
        pools.append((tuple(name.strip() for name in names.split("+")), int(count) if count else None))
    if tuple(name for stages, _ in pools for name in stages) != STAGES:
        raise PlanError(
            f"--pools {layout}: name the stages {', '.join(STAGES)} once each and in this order, joined by + inside a "
            f"pool and by / between pools, for example decode/detect+keypoint+align+embed"
        )
    return pools


def make_plan(layout: str, cluster: Cluster, device: str, threads: int | None = None) -> Plan:
    """Deal the cluster out to the pools of a layout. `device` is "cpu" or "cuda".

    threads: what each actor uses; by default its share of the CPUs there are now.

    One CPU is left free when there are two or more; the pools take fractions of the rest, since logical CPUs are only
    for admission. Pools whose number of actors is given take whole CPUs. Raises PlanError with the sums when it cannot
    fit.
    """
    pools = parse_pools(layout)
    on_gpu = [device == "cuda" and bool(GPU_STAGES & set(stages)) for stages, _ in pools]
    if any(on_gpu) and cluster.gpus < 1:
        raise PlanError(
            f"--device cuda needs a GPU, Ray has {cluster.gpus:g} free; use --device cpu, or --gpus N when the cluster "
            "starts its GPU nodes on demand"
        )
    if cluster.cpus < 0.01:
        raise PlanError(
            f"no CPU is free: Ray has {cluster.cpus:g}; wait for other jobs to end, add a node, or say --num-cpus N "
            "when the cluster starts its nodes on demand"
        )
    budget = cluster.cpus - 1 if cluster.cpus >= 2 else cluster.cpus * 0.9
    slots = max(len(pools), int(cluster.cpus) // THREADS_PER_CPU_ACTOR)
    actors = []
    for (stages, given), gpu in zip(pools, on_gpu, strict=True):
        if given is not None:
            actors.append(given)
        elif gpu:
            actors.append(int(cluster.gpus))
        else:
            share = sum(WORK_SHARE[stage] for stage in stages)
            if any(on_gpu):    # the CPU stages of a GPU job are there to feed the GPUs
                share = share / sum(WORK_SHARE[s] for (names, _), g in zip(pools, on_gpu, strict=True)
                                    if not g for s in names)
            actors.append(max(1, round(slots * share)))
    given_cpus = sum(count for (_, given), count in zip(pools, actors, strict=True) if given is not None)
    shared_by = sum(count for (_, given), count in zip(pools, actors, strict=True) if given is None)
    left = budget - given_cpus
    if given_cpus > cluster.cpus or (shared_by and left <= 0):
        sums = " + ".join(f"{'+'.join(stages)} {count} × {'1' if given else 'a share'} CPU"
                          for (stages, given), count in zip(pools, actors, strict=True))
        raise PlanError(
            f"this plan needs more CPUs than are free: {sums} against {cluster.cpus:g} CPUs"
            f"{', of which one stays free' if shared_by and cluster.cpus >= 2 else ''}; lower the numbers in --pools"
        )
    gpu_pools = sum(on_gpu)
    planned = []
    for (stages, given), gpu, count in zip(pools, on_gpu, actors, strict=True):
        cpus = 1.0 if given is not None else min(1.0, math.floor(left / shared_by * 1000) / 1000)
        gpus = 0.0
        if gpu:
            per_pool = cluster.gpus / gpu_pools
            gpus = min(1.0, math.floor(per_pool / count * 1000) / 1000)
            if gpus <= 0:
                raise PlanError(f"{count} actors of {'+'.join(stages)} cannot share {cluster.gpus:g} GPUs")
        own_threads = max(1, _threads(cluster, gpu and "decode" in stages, count))
        planned.append(PoolPlan(stages, count, cpus, gpus, threads or own_threads))
    return Plan(tuple(planned), sink_workers=max(1, min(8, sum(pool.actors for pool in planned) // 4)))


def _threads(cluster: Cluster, decodes_for_gpu: bool, actors: int) -> int:
    """How many threads an actor of a pool uses: one that decodes for its GPU takes its share of all CPUs."""
    share = int(cluster.cpus) // actors
    return share if decodes_for_gpu else min(THREADS_PER_CPU_ACTOR, share)
