from concurrent.futures import ThreadPoolExecutor

import pytest

from cbsim.base.paths import scratch_folder, write_text, written_whole


def test_two_at_work_on_one_target_leave_each_other_alone(tmp_path):
    with scratch_folder(tmp_path / "run") as first, scratch_folder(tmp_path / "run") as second:
        assert first.is_dir()
        assert second.is_dir()
        assert first != second
    assert list(tmp_path.iterdir()) == []


def test_what_killed_processes_left_for_a_target_is_cleared_away(tmp_path):
    for name in (".run.abc.partial", ".other.abc.partial"):
        (tmp_path / name / "new").mkdir(parents=True)
        (tmp_path / name / "new" / "config.yaml").write_text("name: half")
    with scratch_folder(tmp_path / "run") as folder:
        assert {path.name for path in tmp_path.iterdir()} == {folder.name, ".other.abc.partial"}


def test_an_error_inside_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), scratch_folder(tmp_path / "run") as folder:  # noqa: PT012
        (folder / "half").write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_what_killed_processes_left_of_a_file_is_cleared_away_and_what_others_write_is_not(tmp_path):
    path, elsewhere = tmp_path / "table.csv", tmp_path / "elsewhere"
    (tmp_path / ".table.csv.123.partial").write_text("half")
    (tmp_path / ".other.csv.123.partial").write_text("half")
    with written_whole(path) as mine, ThreadPoolExecutor(1) as thread:
        mine.write_text("mine")
        thread.submit(write_text, path, "theirs").result()
        assert path.read_text() == "theirs"
    assert path.read_text() == "mine"
    assert {each.name for each in tmp_path.iterdir()} == {"table.csv", ".other.csv.123.partial"}
    elsewhere.write_text("elsewhere")
    path.unlink()
    path.symlink_to(elsewhere)
    write_text(path, "new")
    assert (elsewhere.read_text(), path.read_text()) == ("elsewhere", "new")
