"""Files appear whole or not at all, whatever other threads do."""

import os
import stat
import threading

import pytest

from tcgn_hub.errors import OutputError
from tcgn_hub.files import write_bytes, write_text, writing
from tcgn_hub.text import aligned


def test_text_in_parts_is_the_text(tmp_path):
    write_text(tmp_path / "whole", "a\nµ\n")
    write_text(tmp_path / "parts", (part for part in ("a\n", "µ\n")))
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "parts").read_bytes() == "a\nµ\n".encode()


def test_an_interruption_leaves_nothing(tmp_path):
    def interrupted():
        with writing(tmp_path / "out") as part:
            part.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_none_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "absent/out", tmp_path / "file/out", tmp_path):
        with pytest.raises(OutputError, match=r" cannot be written \(.+\)\.$"):
            write_bytes(path, b"")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(os.name == "nt", reason="no umask")
def test_overlapping_writers_neither_ask_for_the_umask_nor_change_it(tmp_path, monkeypatch):
    """To read the umask is to set it, for every thread: a file made meanwhile by another would be open to all."""
    before = os.umask(0o027)
    try:
        monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("the umask was set"))
        meet = threading.Barrier(2)

        def write(name):
            with writing(tmp_path / name) as part:
                meet.wait(timeout=30)
                part.write_text(name)
                meet.wait(timeout=30)

        threads = [threading.Thread(target=write, args=(name,)) for name in "ab"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        monkeypatch.undo()
        assert os.umask(before) == 0o027
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir()}
    assert modes == {"a": 0o640, "b": 0o640}


def test_columns_are_as_wide_as_their_longest_cell():
    assert aligned([["gene", "value", "why"], ["A", "1", "no"]], left=(0, 2)) == "gene  value  why\nA         1  no\n"


def test_of_two_files_the_one_that_cannot_be_written_is_named_once(tmp_path):
    with (
        pytest.raises(OutputError) as raised,
        writing(tmp_path / "beside.json"),
        writing(tmp_path / "x.csv"),
    ):
        raise OSError(27, "File too large")
    assert str(raised.value) == f"{tmp_path / 'x.csv'} cannot be written (File too large)."
    assert not list(tmp_path.iterdir())
