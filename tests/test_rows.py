"""Tables of many rows, in memory and on disk."""

import errno
import os
import subprocess
import sys

import numpy as np
import pytest

from tcgn_hub import rows
from tcgn_hub.errors import OutputError
from tcgn_hub.rows import Table, blocks, forget, take_columns


@pytest.fixture(params=[1 << 20, 0], ids=["memory", "disk"])
def kept(request, monkeypatch):
    """Whether tables are kept on disk."""
    monkeypatch.setattr(rows, "IN_MEMORY", request.param)
    return request.param == 0


def filled(count: int, width: int = 7) -> tuple[Table, np.ndarray]:
    values = np.random.default_rng(0).random((count, width), np.float32)
    table = Table(values.shape)
    for start in range(0, count, 100):
        part = slice(start, start + 100)
        table.put(np.arange(count)[part], values[part])
    return table, values


def test_rows_are_where_they_were_put(kept, tmp_path):
    table = Table((10, 3), beside=tmp_path)
    want = np.zeros((10, 3), np.float32)
    for index in ([0, 1, 4, 5, 9], [3], [], [2, 7]):
        values = np.random.default_rng(len(index)).random((len(index), 3))
        table.put(np.array(index, int), values)
        want[index] = values
    np.testing.assert_array_equal(table.array, want)
    # the file has no name, so that nothing is left whatever ends the process
    assert not list(tmp_path.iterdir())
    flat = Table((5,))
    flat.put(np.array([1, 3]), np.array([2.0, 4.0]))
    assert flat.array.tolist() == [0, 2, 0, 4, 0]


def test_what_is_kept_moves_to_the_front(kept):
    table, values = filled(3000)
    index = np.flatnonzero(np.arange(3000) % 7)
    got = table.keep(index)
    np.testing.assert_array_equal(got, values[index])
    assert np.shares_memory(got, table.array)


def test_arrays_outlive_the_table_and_can_be_changed(kept):
    table, values = filled(3000)
    array = table.array[:2500]
    del table
    array[5] = 1
    forget(array)
    assert (array[5] == 1).all()
    np.testing.assert_array_equal(array[6:], values[6:2500])
    np.testing.assert_array_equal(np.concatenate(list(blocks(array)))[6:], values[6:2500])


def test_columns(kept):
    table, values = filled(3000)
    got = take_columns(table.array[:2900], [3, 0])
    np.testing.assert_array_equal(got, values[:2900, [3, 0]])
    got[:] = 0
    assert table.array[:, 3].any()


def test_only_own_pages_are_forgotten(tmp_path):
    """What is changed in a private copy of the pages of another file would be lost."""
    np.save(tmp_path / "x.npy", np.zeros((4, 4), np.float32))
    array = np.load(tmp_path / "x.npy", mmap_mode="c")
    array[:] = 3
    forget(array)
    assert (array == 3).all()


def test_no_folder_and_a_full_disk_are_errors(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "IN_MEMORY", 0)
    with pytest.raises(OutputError, match=r"absent cannot hold what is predicted \(No such file or directory\)\.$"):
        Table((3, 3), beside=tmp_path / "absent")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    table = Table((3, 3), beside=tmp_path)
    monkeypatch.setattr(table, "_file", type("File", (), {"seek": full, "write": full, "flush": full})())
    with pytest.raises(OutputError, match=r"cannot hold what is predicted \(No space left on device\)\.$"):
        table.put(np.arange(2), np.ones((2, 3)))


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="memory is read from /proc")
def test_memory_does_not_grow_with_the_rows():
    code = (
        "import sys\n"
        "import numpy as np\n"
        "from tcgn_hub.rows import Table, blocks\n"
        "count = int(sys.argv[1])\n"
        "table, part = Table((count, 1000)), np.ones((1000, 1000), np.float32)\n"
        "for start in range(0, count, 1000):\n"
        "    table.put(np.arange(start, start + 1000), part)\n"
        "assert sum(float(block.sum()) for block in blocks(table.keep(np.arange(1, count)))) == (count - 1) * 1000\n"
        "print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM:')).split()[1])\n"
    )
    # what getrusage says of a child may be of the process that started it
    few, many = (
        int(subprocess.run([sys.executable, "-c", code, count], capture_output=True, text=True, check=True).stdout)
        / 1024
        for count in ("20000", "80000")
    )
    assert many - few < 20  # of 229 MiB more that the table has
