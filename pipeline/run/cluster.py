"""Start Ray on this machine, or join a cluster that runs, quietly either way."""

from __future__ import annotations

import logging
import os
import socket
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.run.interrupt import held_back
from pipeline.storage.uris import is_remote

REPOSITORY = Path(__file__).resolve().parents[2]

# glibc keeps an arena for every thread that ever decoded; memory then grows with the number of images.
WORKER_ENV = {"MALLOC_ARENA_MAX": "2"}

# What an HTTP/2 client sends first (RFC 9113, 3.4): the preface and an empty SETTINGS; the server answers with its own.
HTTP2_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
ANSWER_S = 10.0

# Ray sends code as a zip without compression: two headers with its name for every file, and one at the end.
ZIP_ENTRY_BYTES, EMPTY_ZIP_BYTES = 30 + 46, 22


@dataclass(frozen=True, slots=True)
class Connection:
    """The Ray that the job runs on: its nodes, and the CPUs and GPUs that are free there."""

    cpus: float
    gpus: float
    nodes: int


class ClusterError(UserError):
    """Ray cannot be started or joined, or the job cannot run on it as it was asked for."""


@contextmanager
def connect(num_cpus: int | None = None, *, worker_output: bool = False) -> Iterator[Connection]:
    """Join the cluster that RAY_ADDRESS names (`ray job submit` sets it), or start Ray on this machine; leave it after.

    num_cpus: of a Ray started here; None takes what the machine has. worker_output: show what workers print. Outside a
    submitted job a joined cluster gets this repository's code. Raises ClusterError when the cluster cannot be reached.
    """
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")   # Ray logs an error of its own making for every actor
    # (its issue 57733); what goes wrong in earnest is raised. Without the next it announces a change to every user.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray
    from ray.data import DataContext

    address = os.environ.get("RAY_ADDRESS")
    if address and address.startswith(("http://", "https://")):
        raise ClusterError(
            f"RAY_ADDRESS={address} is the address for `ray job submit`; unset it to run on this machine, or submit "
            "the job: ray job submit --working-dir . -- python -m jobs.extract …"
        )
    try:
        with held_back():
            with quiet_stderr():
                if address:
                    _join(address, worker_output)
                else:
                    _start(num_cpus, worker_output)
            free = ray.available_resources() if address else ray.cluster_resources()
            nodes = sum(node["Alive"] for node in ray.nodes())
        for name in ("ray", "ray.data"):
            logging.getLogger(name).setLevel(logging.CRITICAL)       # pages about what is raised here all the same
        context = DataContext.get_current()
        context.raise_original_map_exception = True
        context.enable_progress_bars = False
        context.enable_operator_progress_bars = False
        yield Connection(free.get("CPU", 0.0), free.get("GPU", 0.0), nodes)
    finally:
        with held_back():
            ray.shutdown()


@contextmanager
def quiet_stderr() -> Iterator[None]:
    """Keep back what this process writes to stderr, C++ included; shown after all if the block raises."""
    sys.stderr.flush()
    shown = os.dup(2)
    with tempfile.TemporaryFile() as kept:
        os.dup2(kept.fileno(), 2)
        try:
            yield
        except BaseException:
            kept.seek(0)
            os.write(shown, kept.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(shown, 2)
            os.close(shown)


def _join(address: str, worker_output: bool) -> None:
    import ray

    runtime_env: dict[str, Any] = {"env_vars": WORKER_ENV}
    if not in_submitted_job():
        check_working_dir(REPOSITORY, submitted=False)
        runtime_env["working_dir"] = str(REPOSITORY)     # .gitignore and .rayignore say what stays behind
    host, _, port = address.rpartition(":")
    try:
        if host and port.isdecimal() and "://" not in address:      # Ray itself would try for ever
            _greet(host, int(port))
        ray.init(
            address=address, runtime_env=runtime_env, log_to_driver=worker_output, logging_level=logging.ERROR
        )
    except OSError as error:
        raise ClusterError(
            f"no Ray answers at RAY_ADDRESS={address} ({error}); start it, or unset RAY_ADDRESS"
        ) from None


def _greet(host: str, port: int) -> None:
    """Raises OSError where no HTTP/2 server, as Ray's head is one, answers within 10 s."""
    with socket.create_connection((host, port), ANSWER_S) as connection:
        if os.environ.get("RAY_USE_TLS", "0").lower() not in ("1", "true"):
            connection.sendall(HTTP2_GREETING)
            if not connection.recv(1):
                raise ConnectionError("it is no Ray")


def _start(num_cpus: int | None, worker_output: bool) -> None:
    import ray

    for name, value in WORKER_ENV.items():
        os.environ.setdefault(name, value)               # inherited by Ray and so by its workers
    os.environ["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
    ray.init(
        address="local", num_cpus=num_cpus, include_dashboard=False, log_to_driver=worker_output,
        logging_level=logging.ERROR,
    )


def check_working_dir(folder: Path, *, submitted: bool) -> str:
    """A line on how large the code is that travels to a cluster, and what of it is largest.

    submitted: by `ray job submit`, whose dashboard takes 100 MiB and says little about more; else by joining the
    cluster, which takes 512 MiB. Raises ClusterError when it is too large.
    """
    from ray._private import ray_constants
    from ray._private.runtime_env.packaging import GCS_STORAGE_MAX_SIZE

    limit = ray_constants.DASHBOARD_CLIENT_MAX_SIZE if submitted else GCS_STORAGE_MAX_SIZE
    files = working_dir_files(folder)
    size = EMPTY_ZIP_BYTES + sum(files.values())
    by_place: Counter[str] = Counter()
    for name, number in files.items():
        first, *below = name.split("/")
        by_place[f"{first}/{below[0]}{'/' * (len(below) > 1)}" if below else first] += number
    largest = ", ".join(f"{place} {number / 2**20:.1f} MiB" for place, number in by_place.most_common(3))
    taken = f"of {limit / 2**20:.0f} MiB that {'ray job submit' if submitted else 'a cluster'} takes"
    line = f"the code that travels, {folder}, has {size / 2**20:.1f} MiB {taken}; largest: {largest}"
    if size >= limit:
        raise ClusterError(
            f"{line}. Name in .rayignore what the job does not need; weights of your own may lie in a bucket, "
            "--weights s3://…"
        )
    return line


def working_dir_files(folder: Path) -> dict[str, int]:
    """What Ray packs of a folder, by its own rules (.gitignore, .rayignore, its defaults): bytes in the zip by name."""
    from ray._private.ray_constants import RAY_RUNTIME_ENV_IGNORE_GITIGNORE, get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import _dir_travel, _get_excludes

    files: dict[str, int] = {}

    def add(path: Path) -> None:
        empty_folder = path.is_dir() and next(path.iterdir(), None) is None
        if empty_folder or path.is_file():
            name = path.relative_to(folder).as_posix() + "/" * empty_folder
            content = 0 if empty_folder else path.stat().st_size
            files[name] = ZIP_ENTRY_BYTES + 2 * len(name.encode()) + content

    folder = folder.absolute()
    _dir_travel(
        folder, [_get_excludes(folder, get_runtime_env_default_excludes())], add,
        include_gitignore=os.environ.get(RAY_RUNTIME_ENV_IGNORE_GITIGNORE, "0") != "1",
        logger=logging.getLogger(__name__),
    )
    return files


def in_submitted_job() -> bool:
    """Whether `ray job submit` started this process: its code is then on every node already."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def refuse_local_paths(connection: Connection, paths: dict[str, str], shared_filesystem: bool) -> None:
    """On several nodes a local path means another file on each. Raises ClusterError naming it.

    paths: from the argument's name to its value.
    """
    local = [f"{name} {value}" for name, value in paths.items() if not is_remote(value)]
    if local and connection.nodes > 1 and not shared_filesystem:
        raise ClusterError(
            f"the cluster has {connection.nodes} nodes, and these are local paths: {', '.join(local)}; use a bucket, "
            "or say --shared-filesystem if all nodes see the same files there"
        )
