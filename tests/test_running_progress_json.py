"""Progress for other programs: one JSON object a line, exact sums, few lines."""

from __future__ import annotations

import io
import json
import threading
import time

import pytest
from running_project import STACKS, finish, spoil, start, write_many

from portal_extract.cli.progress_json import JsonLines, show_progress_as
from portal_extract.running.events import (
    BytesRead,
    Note,
    StageAdvanced,
    StageFinished,
    StageStarted,
)


def lines_of(stream: io.StringIO) -> list[dict]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_events_are_objects_with_a_name_and_a_time():
    stream, before = io.StringIO(), time.time()
    lines = JsonLines(stream)
    lines(StageStarted("extract", 10, "views"))
    lines(Note("a sentence", "warning"))
    lines(StageAdvanced("extract", 4))
    lines(BytesRead(100, 2, 1))
    lines(StageFinished("extract"))
    found = lines_of(stream)
    assert all(before - 1 <= line.pop("time") <= time.time() + 1 for line in found)
    assert found == [
        {"event": "stage_started", "stage": "extract", "total": 10, "unit": "views"},
        {"event": "note", "text": "a sentence", "level": "warning"},
        {"event": "bytes_read", "n_bytes": 100, "n_requests": 2, "n_retries": 1},
        {"event": "stage_advanced", "stage": "extract", "steps": 4},
        {"event": "stage_finished", "stage": "extract"},
    ]


def test_many_steps_are_few_lines_with_exact_sums():
    stream = io.StringIO()
    lines = JsonLines(stream)

    def work():
        for _ in range(2000):
            lines(StageAdvanced("a", 1))
            lines(StageAdvanced("b", 2))
            lines(BytesRead(3))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines.flush()
    found = lines_of(stream)
    steps = {name: sum(e["steps"] for e in found if e.get("stage") == name) for name in "ab"}
    assert steps == {"a": 8000, "b": 16000}
    read = [e for e in found if e["event"] == "bytes_read"]
    assert sum(e["n_bytes"] for e in read) == 24000
    assert sum(e["n_requests"] for e in read) == 8000
    assert len(found) < 2000


def test_what_is_left_is_written_at_the_end(capsys):
    def fail() -> None:
        with show_progress_as({"json_progress": True, "quiet": False, "as_json": False}) as observer:
            observer(StageAdvanced("extract", 7))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["steps"] == 7


@pytest.mark.parametrize("more", [[], ["--scheduler", "local", "--processes", "2"]], ids=["threads", "local"])
def test_a_run_tells_everything(tmp_path, more):
    folder = write_many(tmp_path / "project", n_series=2, n_particles=3)
    code, errors = finish(start(folder, [*STACKS, "--json-progress", *more]))
    assert code == 0, errors
    events = [json.loads(line) for line in errors.splitlines()]
    assert [e["event"] for e in events if e["event"].startswith("stage_s")] == ["stage_started"]
    assert sum(e["steps"] for e in events if e["event"] == "stage_advanced") == events[0]["total"] == 42
    read = sum(e["n_bytes"] for e in events if e["event"] == "bytes_read")
    assert events[-1]["event"] == "finished"
    assert events[-1]["summary"]["bytes_read"] == read > 0
    assert events[-1]["summary"]["extracted"] == 6


def test_a_refusal_is_an_event_too(tmp_path):
    folder = write_many(tmp_path / "project", n_series=1, n_particles=2)
    spoil(folder, "TS_00")
    code, errors = finish(start(folder, [*STACKS, "--json-progress"]))
    event = json.loads(errors.splitlines()[-1])
    assert code == 2
    assert (event["event"], event["exit_code"]) == ("error", 2)
    assert "TS_00.mrcs" in event["message"]
    code, errors = finish(start(folder, ["--json-progress", "--box-size", "a"]))
    event = json.loads(errors)
    assert code == event["exit_code"] == 2
    assert "box-size" in event["message"]
