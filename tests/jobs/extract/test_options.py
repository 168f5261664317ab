import re
from pathlib import Path

import pytest

from jobs.extract.options import argument_parser, batches, model_names, parse_arguments, row_settings
from jobs.extract.stages import DEFAULT_BATCHES, Batches
from jobs.options import DEFAULT_MODELS, ArgumentError
from pipeline.settings import RowSettings


def test_defaults_are_those_of_the_settings():
    assert row_settings(parse_arguments(["in", "out"])) == RowSettings()


@pytest.mark.parametrize("device", DEFAULT_BATCHES)
def test_default_batches_are_those_of_the_device(device):
    assert batches(parse_arguments(["in", "out"]), device) == DEFAULT_BATCHES[device]


def test_batches_of_the_command_line():
    given = ["--detect-batch", "1", "--face-batch", "2", "--batch-images", "3", "--batch-mb", "4"]
    assert batches(parse_arguments(["in", "out", *given]), "cuda") == Batches(detect=1, faces=2, images=3, mb=4)


@pytest.mark.parametrize("named", [{}, {"keypointer": "resnet18"}])
def test_the_models_that_the_user_names(named):
    words = [word for role, name in named.items() for word in (f"--{role}", name)]
    assert model_names(parse_arguments(["in", "out", *words])) == dict.fromkeys(DEFAULT_MODELS) | named


def test_zero_means_off():
    settings = row_settings(parse_arguments(["in", "out", "--second-pass-px", "0", "--max-faces", "0"]))
    assert settings.second_pass_px is None and settings.max_faces is None


@pytest.mark.parametrize(
    "wrong", [["--min-score", "1.2"], ["--rows-per-file", "0"], ["--device", "tpu"], ["--max-error-rate", "x"],
              ["--unknown"], ["--embedding-dtype", "int8"], ["--stall-timeout", "-1"], ["--stall-timeout", "nan"],
              ["--over"]],
)
def test_wrong_arguments_end_with_2(wrong, capsys):
    with pytest.raises(SystemExit) as end:
        parse_arguments(["in", "out", *wrong])
    assert end.value.code == 2 and wrong[0] in capsys.readouterr().err


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(ArgumentError, match=r"^--detect-px must be a multiple of 32"):
        row_settings(parse_arguments(["in", "out", "--detect-px", "100"]))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {"min_score": RowSettings().min_score}),
        ("min-score: 0.6\nmax_faces: 3\nrotate-retry: true\npools: decode/detect+keypoint+align+embed\n",
         {"min_score": 0.6, "max_faces": 3, "rotate_retry": True, "pools": "decode/detect+keypoint+align+embed"}),
        ("embedder: 50\n", {"embedder": "50"}),
        ("exclude: '*.png'\ninclude: ['*.jpg', x]\n", {"exclude": ["*.png"], "include": ["*.jpg", "x"]}),
    ],
)
def test_config_file(tmp_path, text, expected):
    path = tmp_path / "job.yaml"
    path.write_text(text)
    arguments = parse_arguments(["in", "out", "--config", str(path)])
    assert {name: getattr(arguments, name) for name in expected} == expected


def test_the_command_line_wins_over_the_file(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text("min-score: 0.6\n")
    assert parse_arguments(["in", "out", "--config", str(path), "--min-score", "0.7"]).min_score == 0.7


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("min-scor: 0.6", "there is no option 'min-scor'"),
        ("min-score: high", "not a number from 0 to 1"),
        ("min-score: true", "min-score: expected a value, got True"),
        ("rotate-retry: 3", "rotate-retry: expected true or false, got 3"),
        ("device: tpu", "device: expected one of auto, cpu, cuda, got 'tpu'"),
        ("- a\n- b", "expected lines of the form"),
        ("a: [", "job.yaml"),
        ("[" * 1500, "job.yaml"),
        ("pools: [decode, detect]", "pools: expected a value"),
        ("overwrite: true", "overwrite belongs on the command line"),
        ("overwrite: false", "overwrite belongs on the command line"),
        ("weights:", "weights: expected a value, got None"),
        ("config: other.yaml", "a file of --config cannot name another one"),
        ("exclude: [1, true]", "exclude: expected a value, got True"),
    ],
)
def test_wrong_config_files_say_what_is_wrong(tmp_path, capsys, text, message):
    path = tmp_path / "job.yaml"
    path.write_text(text)
    with pytest.raises(SystemExit) as end:
        parse_arguments(["in", "out", "--config", str(path)])
    assert end.value.code == 2 and message in capsys.readouterr().err


def test_a_config_option_without_a_file_shows_the_usage_of_this_command(capsys):
    with pytest.raises(SystemExit):
        parse_arguments(["in", "out", "--config"])
    assert "jobs.extract: error: argument --config: expected one argument" in capsys.readouterr().err


def test_a_config_file_in_another_encoding(tmp_path, capsys):
    (tmp_path / "job.yaml").write_bytes(b"weights: caf\xe9")
    with pytest.raises(SystemExit):
        parse_arguments(["in", "out", "--config", str(tmp_path / "job.yaml")])
    assert "utf-8" in capsys.readouterr().err


def test_a_missing_config_file(capsys):
    with pytest.raises(SystemExit):
        parse_arguments(["in", "out", "--config", "/no/such.yaml"])
    assert "/no/such.yaml" in capsys.readouterr().err


def test_help_and_readme_say_who_cannot_read_float16():
    """Spark's and Trino's Parquet readers refuse the type."""
    readme = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")
    for text in (argument_parser().format_help(), readme):
        sentence = " ".join(text.split())
        assert re.search("Spark[^.]* and Trino cannot read (it|float16)", sentence)
