from __future__ import annotations

import json
import os

import pytest
from training_run import report_of, sync, whole_report

from syncagent.errors import ConfigError, SyncAgentError
from syncagent.report import files
from syncagent.report.model import Report


class TestDestination:
    @pytest.mark.parametrize(
        ("name", "form"),
        [("x.json", "json"), ("x.html", "html"), ("x.sarif", "sarif"), ("x.trace.json", "trace"), ("a.b.json", "json")],
    )
    def test_the_suffix_names_the_format(self, tmp_path, name, form):
        assert files.destination(tmp_path / name) == (tmp_path / name, form)

    @pytest.mark.parametrize("name", ["x.txt", "x", "x.JSON", ".json", "json", ""])
    def test_any_other_name_is_refused_in_one_sentence(self, name):
        with pytest.raises(ConfigError) as caught:
            files.destination(name)
        assert str(caught.value) == (
            f"a report cannot be saved as {name!r}: the name has to end in .json, .html, .md, .sarif or .trace.json, "
            "or be a directory"
        )

    def test_rank_and_pid_are_filled_in(self):
        assert files.destination("r{rank}-{pid}.json", 3)[0].name == f"r3-{os.getpid()}.json"
        assert files.destination("r{rank}.html", None)[0].name == "r0.html"
        assert files.destination("{other}.json")[0].name == "{other}.json"

    def test_a_directory_gets_a_file_for_each_rank(self, tmp_path):
        assert files.destination(tmp_path, 5) == (tmp_path / "rank5.json", "json")
        assert files.destination(f"{tmp_path}/new/", None) == (tmp_path / "new" / "rank0.json", "json")


class TestSave:
    def test_what_is_saved_is_read_back(self, tmp_path):
        report = whole_report()
        assert report.save(tmp_path / "deep" / "x.json") == tmp_path / "deep" / "x.json"
        assert Report.load(tmp_path / "deep" / "x.json") == report

    def test_a_rank_saves_under_its_number(self, tmp_path):
        assert report_of(rank=2).save(f"{tmp_path}/out/") == tmp_path / "out" / "rank2.json"

    @pytest.mark.parametrize(
        ("name", "start"), [("x.html", "<!doctype html>"), ("x.sarif", "{"), ("x.trace.json", '{"displayTimeUnit')]
    )
    def test_each_format_is_written(self, tmp_path, name, start):
        assert whole_report().save(tmp_path / name).read_text().startswith(start)

    def test_each_row_has_a_line_of_its_own(self, tmp_path):
        lines = whole_report().save(tmp_path / "x.json").read_text().splitlines()
        assert sum('"stall_ms_p50"' in line for line in lines) == 4

    def test_nothing_but_the_file_is_left_behind(self, tmp_path):
        whole_report().save(tmp_path / "x.json")
        whole_report().save(tmp_path / "x.json")
        assert [file.name for file in tmp_path.iterdir()] == ["x.json"]

    def test_only_its_owner_may_read_it_unless_asked_for(self, tmp_path, monkeypatch):
        """Whatever the umask says; a file that was there before keeps nothing of its own mode."""
        before = os.umask(0)
        try:
            (tmp_path / "x.json").write_text("")
            modes = [whole_report().save(tmp_path / "x.json").stat().st_mode & 0o777]
            os.umask(0o077)
            monkeypatch.setenv("SYNCAGENT_FILE_MODE", "0644")
            modes.append(whole_report().save(tmp_path / "y.json").stat().st_mode & 0o777)
        finally:
            os.umask(before)
        assert modes == [0o600, 0o644]

    def test_a_link_in_its_place_is_replaced_and_not_followed(self, tmp_path):
        (tmp_path / "precious").write_text("precious")
        (tmp_path / "x.json").symlink_to(tmp_path / "precious")
        whole_report().save(tmp_path / "x.json")
        assert (tmp_path / "precious").read_text() == "precious"
        assert not (tmp_path / "x.json").is_symlink()

    @pytest.mark.parametrize("name", ["n" * 300 + ".json", "n" * 250 + ".json", "a\0.json", "\udcff" * 200 + ".json"])
    def test_a_name_that_cannot_be_is_refused_in_one_sentence(self, tmp_path, name):
        """One that just fits is written: the temporary file's name is not made of it."""
        path = tmp_path / name
        if len(os.fsencode(name)) <= 255 and "\0" not in name:
            assert whole_report().save(path) == path
            return
        with pytest.raises(ConfigError, match=r"^the report cannot be written to .*: (file name too long|embedded)"):
            whole_report().save(path)

    def test_a_disk_without_room_is_reported_and_what_was_there_stays(self, tmp_path):
        """Here it is a limit on the size of files, which fails as a full disk does: in the middle of a write."""
        resource = pytest.importorskip("resource")
        path = whole_report().save(tmp_path / "x.json")
        before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        try:
            with pytest.raises(ConfigError, match=r"^the report cannot be written to .*: file too large$"):
                whole_report().save(path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert [file.name for file in tmp_path.iterdir()] == ["x.json"]
        assert path.read_bytes() == before

    def test_a_path_below_a_file_is_refused_in_one_sentence(self, tmp_path):
        (tmp_path / "file").write_text("")
        path = tmp_path / "file" / "x.json"
        with pytest.raises(ConfigError) as caught:
            whole_report().save(path)
        assert str(caught.value) == f"the report cannot be written to '{path}': a folder in this path is a file"

    def test_a_directory_in_its_place_is_reported_and_no_temporary_file_stays(self, tmp_path):
        (tmp_path / "x.html").mkdir()
        with pytest.raises(ConfigError, match="cannot be written"):
            files.write_atomically(tmp_path / "x.html", "text")
        assert [file.name for file in tmp_path.iterdir()] == ["x.html"]

    @pytest.mark.parametrize("name", ["x.json", "x.html", "x.sarif", "x.trace.json"])
    def test_names_that_are_not_unicode_do_not_cost_the_report(self, tmp_path, name):
        whole_report(script="/tmp/\udcff.py", argv=("\udcff",)).save(tmp_path / name)


class TestLoad:
    @pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"hello"])
    def test_what_is_not_json_is_reported_in_one_sentence(self, tmp_path, content):
        (tmp_path / "x.json").write_bytes(content)
        with pytest.raises(
            SyncAgentError, match=r"x.json' is not a syncagent report: it is not whole JSON \("
        ) as caught:
            Report.load(tmp_path / "x.json")
        assert "\n" not in str(caught.value)

    def test_a_truncated_report_is_reported(self, tmp_path):
        path = whole_report().save(tmp_path / "x.json")
        path.write_text(path.read_text()[:-200])
        with pytest.raises(SyncAgentError, match="not whole JSON"):
            Report.load(path)

    def test_another_tools_json_is_reported(self, tmp_path):
        (tmp_path / "x.json").write_text(json.dumps({"traceEvents": []}))
        with pytest.raises(SyncAgentError, match='it has no key "schema"'):
            Report.load(tmp_path / "x.json")

    def test_a_missing_file_is_reported(self, tmp_path):
        with pytest.raises(SyncAgentError, match=r"cannot read the report .*: no such file or directory"):
            Report.load(tmp_path / "x.json")


class TestLoadMerged:
    def test_a_directory_stands_for_the_reports_in_it(self, tmp_path):
        for rank in (0, 1):
            report_of(sync(), rank=rank).save(tmp_path)
        whole_report().save(tmp_path / "x.trace.json")
        assert files.load_merged([tmp_path]).run.ranks == (0, 1)

    def test_an_empty_directory_is_reported(self, tmp_path):
        with pytest.raises(SyncAgentError, match="there is no report in the directory"):
            files.load_merged([tmp_path])
