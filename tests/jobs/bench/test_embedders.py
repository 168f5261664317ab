from jobs.bench import embedders
from jobs.bench.__main__ import main


def test_embedders_are_compared_with_the_first_and_shipped_ones_show_their_rates(capsys, monkeypatch):
    networks = [{"network": "resnet34", "width": width} for width in (32, 16)]
    monkeypatch.setattr(embedders, "ARCHITECTURES", networks)
    monkeypatch.setattr(embedders, "BATCH", 8)
    assert main(["embedders", "--rounds", "1"]) == 0
    shipped, other = (line.split(" | ") for line in capsys.readouterr().out.splitlines()[-2:])
    assert shipped[:4] == ["| resnet34", "32", "5.7", "2"] and (other[1], other[3]) == ("16", "1")
    assert shipped[5] == "1.00" and float(other[5]) < 1
    assert shipped[6].startswith("0.") and other[6] == "not trained here |"
