"""What the README shows, runs."""

from . import pages


def test_the_readme_runs_and_prints_what_it_should(tmp_path, monkeypatch):
    reader = pages.Reader(tmp_path, monkeypatch)
    reader.read(pages.ROOT / "README.md")
    printed = "".join(reader.printed)
    assert "torch.Size([1, 50]) (46, 19, 19, 19, 19, 19, 19, 19)" in printed
    assert printed.count("rows run, re-entered") == 4
    prefix = reader.names["prefix"]
    assert prefix.served == 2
    assert prefix.saved.rows == 38 * len(prefix.saved.blocks) > 0
    assert "<h3>pdrop-192</h3>" in (tmp_path / "trace.html").read_text("utf-8")
    assert len(reader.names["figure"].axes) == 18
