from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.evaluate.__main__ import build_parser, main


@pytest.mark.parametrize("command", ["detection", "eyes", "identification", "verification"])
def test_wrong_data_gives_one_line_and_exit_code_2(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pq.write_table(pa.table({"other": [1]}), tmp_path / "wrong.parquet")
    wrong = [str(tmp_path / "wrong.parquet")] * (2 if command == "verification" else 1)
    assert main([command, *wrong]) == 2
    error = capsys.readouterr().err
    assert error.startswith("evaluate: ") and error.count("\n") == 1
    assert "has no column" in error


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(SystemExit):
        build_parser().parse_args(["eyes", "x", "--device", "gpu"])


@pytest.mark.parametrize(
    ("command", "option", "value"),
    [("detection", "--input-px", "100"), ("detection", "--input-px", "0"), ("detection", "--min-score", "35"),
     ("detection", "--nms-iou", "-1"), ("eyes", "--batch-size", "0"), ("eyes", "--input-px", "321")],
)
def test_wrong_options_are_refused(command: str, option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([command, "x", option, value])
    assert f"argument {option}: " in capsys.readouterr().err


@pytest.mark.parametrize("command", ["detection", "eyes", "identification"])
def test_an_output_needs_truth(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("images", "faces"):
        (tmp_path / name).mkdir()
    assert main([command, str(tmp_path)]) == 2
    assert "with --truth" in capsys.readouterr().err
