import os
import socket
import threading
from contextlib import nullcontext

import pytest
import yaml

from pipeline.run import cluster
from pipeline.run.cluster import (
    EMPTY_ZIP_BYTES,
    REPOSITORY,
    ClusterError,
    Connection,
    check_start,
    check_working_dir,
    connect,
    quiet_stderr,
    refuse_local_paths,
    working_dir_files,
)


@pytest.mark.parametrize(
    ("nodes", "shared", "paths", "refused"),
    [
        (1, False, {"INPUT": "/photos", "OUTPUT": "out"}, None),
        (2, False, {"INPUT": "s3://b/photos", "OUTPUT": "gs://b/out"}, None),
        (2, True, {"INPUT": "/photos", "OUTPUT": "out"}, None),
        (2, False, {"INPUT": "s3://b/photos", "OUTPUT": "out"}, "OUTPUT out"),
        (3, False, {"INPUT": "/photos", "OUTPUT": "out", "--weights": "w"}, "INPUT /photos, OUTPUT out, --weights w"),
    ],
)
def test_local_paths_on_several_nodes(nodes, shared, paths, refused):
    connection = Connection(8, 0, nodes)
    if refused is None:
        refuse_local_paths(connection, paths, shared)
    else:
        with pytest.raises(ClusterError, match=refused) as error:
            refuse_local_paths(connection, paths, shared)
        assert "--shared-filesystem" in str(error.value)


def test_the_http_address_of_job_submit_is_refused(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    with pytest.raises(ClusterError, match="ray job submit"), connect():
        pass


def test_a_refusal_leaves_a_connected_ray_alone(ray_session, monkeypatch):
    import ray

    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    with pytest.raises(ClusterError), connect():
        pass
    assert ray.is_initialized()


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_cluster_that_does_not_answer_is_refused_at_once(monkeypatch, scheme):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))                # bound but not listening, so nobody answers
        address = f"{scheme}127.0.0.1:{unused.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(ClusterError, match=f"no Ray answers at RAY_ADDRESS={address}"), connect():
            pass


@pytest.mark.parametrize("address", ["foo", "foo:", ":6379", "foo:bar", "ray://foo"])
def test_what_is_no_address_is_refused(monkeypatch, address):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ClusterError, match=f"RAY_ADDRESS={address} is no address: name host:port or auto"), connect():
        pass


@pytest.mark.parametrize(
    ("device", "gpus", "visible", "refused"),
    [
        ("auto", None, 0, None),
        ("cuda", None, 0, "--device cuda needs a GPU, and this machine has none"),
        ("auto", 1.0, 0, "--gpus 1 needs a GPU, and this machine has none"),
        ("cuda", 1.0, 0, "--device cuda needs a GPU, and this machine has none"),
        ("cuda", 1.0, 1, None),
    ],
)
def test_a_gpu_that_this_machine_lacks_is_refused_before_ray_starts(monkeypatch, device, gpus, visible, refused):
    """A Ray that is started here gets no nodes later."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("pipeline.run.cluster._gpus_here", lambda: visible)
    with pytest.raises(ClusterError, match=refused) if refused else nullcontext():
        check_start(device, gpus)


def test_cluster_yaml_is_valid_for_the_launcher_of_ray():
    """By the schema that Ray checks before `ray up`."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(yaml.safe_load((REPOSITORY / "cluster.yaml").read_text()))
    validate_config(config)
    types = config["available_node_types"]
    assert config["head_node_type"] == "head" and set(types) == {"head", "cpu", "gpu"}


def test_cluster_yaml_with_an_unknown_key_is_refused():
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(yaml.safe_load((REPOSITORY / "cluster.yaml").read_text()))
    with pytest.raises(ValidationError):
        validate_config(config | {"workers": 3})


def fill(folder, files):
    """Write files: text as it is, a number as a sparse file of that size, a name that ends in / as an empty folder."""
    for name, content in files.items():
        path = folder / name
        if name.endswith("/"):
            path.mkdir(parents=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            path.write_text(content)
        else:
            with path.open("wb") as file:
                file.truncate(content)
    return folder


@pytest.mark.parametrize(
    ("files", "ignore_gitignore", "packed"),
    [
        ({}, False, {"./"}),
        ({"a.py": 10}, False, {"a.py"}),
        ({"a.py": 10, "b/c/d.py": 7, "empty/": None, "grüße/ß.txt": 3}, False,
         {"a.py", "b/c/d.py", "empty/", "grüße/ß.txt"}),
        ({".git/objects/x": 99, ".venv/lib/y": 99, "a.py": 1}, False, {"a.py"}),
        ({".gitignore": "out/\n*.log", ".rayignore": "tests/", "out/x": 9, "a.log": 9, "tests/t.py": 9, "a.py": 1,
          "sub/.rayignore": "big", "sub/big": 9, "sub/small": 9}, False,
         {".gitignore", ".rayignore", "a.py", "sub/.rayignore", "sub/small"}),
        ({".gitignore": "out/", "out/x": 9}, True, {".gitignore", "out/x"}),
    ],
)
def test_the_files_we_count_are_those_that_ray_packs(tmp_path, monkeypatch, files, ignore_gitignore, packed):
    """The names, and to the byte the size of the zip that Ray makes of the folder."""
    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import create_package

    monkeypatch.setenv("RAY_RUNTIME_ENV_IGNORE_GITIGNORE", "1" if ignore_gitignore else "0")
    (folder := tmp_path / "code").mkdir()
    found = working_dir_files(fill(folder, files))
    assert set(found) == packed
    package = tmp_path / "package.zip"
    create_package(str(folder), package, include_gitignore=not ignore_gitignore,
                   excludes=get_runtime_env_default_excludes())
    assert package.stat().st_size == EMPTY_ZIP_BYTES + sum(found.values())


MIB = 2**20


@pytest.mark.parametrize(
    ("mib", "submitted", "refused"),
    [(0, True, False), (99, True, False), (100, True, True), (300, False, False), (512, False, True)],
)
def test_code_that_is_too_large_is_refused(tmp_path, mib, submitted, refused):
    fill(tmp_path, {"data/photos/a.jpg": mib * MIB // 2, "data/photos/b.jpg": mib * MIB // 2, "notes/n": MIB // 2})
    if not refused:
        assert f" has {mib + 0.5:.1f} MiB of " in check_working_dir(tmp_path, submitted=submitted)
        return
    with pytest.raises(ClusterError) as error:
        check_working_dir(tmp_path, submitted=submitted)
    assert f"{mib}.5 MiB of {100 if submitted else 512} MiB" in str(error.value)
    assert f"largest: data/photos/ {mib}.0 MiB, notes/n 0.5 MiB" in str(error.value)
    assert ".rayignore" in str(error.value)


def test_joining_with_too_much_code_is_refused_before_it_is_sent(tmp_path, monkeypatch):
    """Nobody listens at the address, so an attempt to join would raise another error."""
    fill(tmp_path, {"checkpoints/last": 600 * MIB})
    monkeypatch.setattr("pipeline.run.cluster.REPOSITORY", tmp_path)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(ClusterError, match=r"largest: checkpoints/last 600\.0 MiB"), connect():
        pass


def test_this_repository_can_be_submitted():
    line = check_working_dir(REPOSITORY, submitted=True)
    assert "of 100 MiB that ray job submit takes; largest: models/weights/ " in line
    assert not {name for name in working_dir_files(REPOSITORY) if name.startswith((".git/", "tests/", "checkpoints/"))}


def test_quiet_stderr_shows_output_only_if_the_block_raises(capfd):
    with quiet_stderr():
        os.write(2, b"chatter\n")
    assert capfd.readouterr().err == ""
    with pytest.raises(OSError, match="broken"), quiet_stderr():
        os.write(2, b"the reason\n")
        raise OSError("broken")
    assert "the reason" in capfd.readouterr().err


def hang_up(server: socket.socket) -> None:
    """Accept one connection, read, and close it."""
    connection, _ = server.accept()
    with connection:
        connection.recv(1000)


@pytest.mark.parametrize(("answers", "reason"), [(False, "timed out"), (True, "is not Ray")])
def test_a_server_that_is_silent_or_not_ray_is_refused(monkeypatch, answers, reason):
    """Ray itself would wait for ever and ignore Ctrl-C."""
    monkeypatch.setattr(cluster, "ANSWER_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        if answers:
            threading.Thread(target=hang_up, args=(server,), daemon=True).start()
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{server.getsockname()[1]}")
        with pytest.raises(ClusterError, match=f"no Ray answers.*{reason}.*unset RAY_ADDRESS"), connect():
            pass
