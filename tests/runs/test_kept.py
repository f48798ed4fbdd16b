"""What is not ours stays: devices, links, and files of the user whose names resemble ours."""

import os
import stat

import pytest
from script_helpers import TINY, call

from pyrovae.runs import check_writable, write_whole


@pytest.fixture
def special(tmp_path):
    """A named pipe, which stands for a device here, and a link to it."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    return tmp_path


@pytest.mark.parametrize("name", ["pipe", "link"])
def test_a_file_is_not_written_in_place_of_a_device(special, name):
    with pytest.raises(OSError, match=r"cannot write .*: it is a (named pipe|link); choose another name"):
        write_whole(special / name, b"x")
    with pytest.raises(ValueError, match=r"--figure .* is a (named pipe|link), not a regular file; give the name of a"):
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


def test_files_of_the_user_with_names_like_ours_are_not_swept(place, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    kept = [".new-photos/a.jpg", ".new-abcdefgh/config.yaml", ".new-abcdefgh/a.jpg", ".unfinished-letter.txt"]
    for name in kept:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert (
        call(capsys, monkeypatch, "train", "--data", place / "bits.npy", *TINY, "--epochs", 1, "--out", "new")[0] == 0
    )
    write_whole(tmp_path / "file", b"x")
    assert all((tmp_path / name).exists() for name in kept)
    mine = tmp_path / "new/samples-mine.png"
    mine.touch()
    (tmp_path / "new/samples-7.png").touch()  # of an earlier call with more samples
    assert call(capsys, monkeypatch, "sample", "new", "--num_samples", 2)[0] == 0
    assert mine.exists()
    assert not (tmp_path / "new/samples-7.png").exists()
