import pytest

from cbsim.base.paths import scratch_folder


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
