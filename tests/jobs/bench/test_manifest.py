import pytest

from jobs.bench.__main__ import main
from jobs.bench.manifest import simulated_key, simulated_keys


def test_a_simulated_bucket_is_listed_whole(capsys):
    assert main(["manifest", "--keys", "2500", "--threads", "2", "--latency-ms", "0"]) == 0
    assert "exit code 0, 2,500 rows of 2,500 keys in 1 parts" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("after", "expected"),
    [("", range(0, 5)), ("photos/", range(0, 5)), (simulated_key(7), range(8, 10)), ("q", range(10, 10))],
)
def test_a_simulated_bucket_continues_after_any_key(after, expected):
    assert simulated_keys(f"https://s3/b?max-keys=5&start-after={after}", 10) == expected
