import os
import socket

import pytest
import yaml

from pipeline.cluster import REPOSITORY, Connection, connect, quiet_stderr, refuse_local_paths
from pipeline.plan import Cluster, PlanError


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
    connection = Connection(Cluster(8, 0), nodes)
    if refused is None:
        refuse_local_paths(connection, paths, shared)
    else:
        with pytest.raises(PlanError, match=refused) as error:
            refuse_local_paths(connection, paths, shared)
        assert "--shared-filesystem" in str(error.value)


def test_the_address_of_job_submit_is_not_rays(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    with pytest.raises(PlanError, match="ray job submit"), connect():
        pass


def test_a_cluster_that_does_not_answer_is_told_at_once(monkeypatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))                # bound and not listening: nobody answers
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(PlanError, match=f"no Ray answers at RAY_ADDRESS={address}"), connect():
            pass


def test_cluster_yaml_is_valid_for_rays_launcher():
    """Against the schema that ray itself checks with before `ray up`."""
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


def test_quiet_stderr_shows_what_was_said_only_when_it_breaks(capfd):
    with quiet_stderr():
        os.write(2, b"chatter\n")
    assert capfd.readouterr().err == ""
    with pytest.raises(OSError, match="broken"), quiet_stderr():
        os.write(2, b"the reason\n")
        raise OSError("broken")
    assert "the reason" in capfd.readouterr().err
