"""What is not ours stays: devices, links, and files of the user whose names resemble ours."""

import os
import stat

import pytest

from pyrovae.runs import check_writable, write_whole


@pytest.fixture
def special(tmp_path):
    """A named pipe, which stands for a device here, and a link to it."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    return tmp_path


@pytest.mark.parametrize("name", ["pipe", "link"])
def test_a_file_is_not_written_in_place_of_a_device(special, name):
    with pytest.raises(OSError, match="cannot write .*: it is a (named pipe|link); choose another name"):
        write_whole(special / name, b"x")
    with pytest.raises(ValueError, match="--figure .* is a (named pipe|link), not a regular file; give the name of a"):
        check_writable("--figure", special / name)
    assert stat.S_ISFIFO((special / "pipe").stat().st_mode)
    assert (special / "link").is_symlink()
    assert sorted(os.listdir(special)) == ["link", "pipe"]


def test_a_name_that_ends_as_a_folder_is_none_of_a_file(tmp_path):
    with pytest.raises(ValueError, match="new/ is a folder; give the name of a file"):
        check_writable("--figure", f"{tmp_path}/new/")


def test_a_link_to_a_file_is_replaced_and_its_target_stays(tmp_path):
    (tmp_path / "target").write_bytes(b"old")
    (tmp_path / "link").symlink_to("target")
    write_whole(tmp_path / "link", b"new")
    assert (tmp_path / "link").read_bytes() == b"new"
    assert (tmp_path / "target").read_bytes() == b"old"
