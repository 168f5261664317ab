from jobs.preview.__main__ import main
from tests.jobs.preview.test_write import write_output


def test_the_command_prints_where_the_page_is(tmp_path, capsys):
    write_output(tmp_path / "out")
    assert main([str(tmp_path / "out"), "--html", str(tmp_path / "p.html")]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/p.html\n"
    assert (tmp_path / "p.html").exists()


def test_without_an_output_there_is_nothing_to_show(tmp_path, capsys):
    assert main([str(tmp_path / "nothing"), "--html", str(tmp_path / "p.html")]) == 2
    assert "no output.json in" in capsys.readouterr().err
    assert not (tmp_path / "p.html").exists()
