import pytest

from jobs.bench.__main__ import main


@pytest.mark.parametrize("argv", [
    [], ["stages"], ["nothing"], ["pools", "photos"], ["all", "--rounds", "0"], ["embedders", "--round", "1"],
])
def test_wrong_commands_end_with_2(argv, capsys):
    with pytest.raises(SystemExit) as end:
        main(argv)
    assert end.value.code == 2 and "usage" in capsys.readouterr().err


def test_images_to_blur_need_their_output(tmp_path, capsys):
    assert main(["blur", str(tmp_path)]) == 2
    assert "and the OUTPUT that jobs.extract made of it" in capsys.readouterr().err
