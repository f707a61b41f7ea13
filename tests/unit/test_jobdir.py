"""The JOBDIR of a crawl that stock Scrapy has paused, as entries: what the command reads."""

from __future__ import annotations

import os
import shutil
import tracemalloc
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from scrapy import Request, Spider, squeues

from scrapy_apify_rq.commands.jobdir import JobDir
from scrapy_apify_rq.entries.converter import RequestConverter
from scrapy_apify_rq.entries.unique_keys import Keys
from scrapy_apify_rq.errors import CodecError, ConfigError
from tests.support.jobdirs import NoStart, spider_of, write
from tests.support.waiting import run_async

# Older versions of Scrapy do not close the empty disk queues that they open.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <_io.FileIO:pytest.PytestUnraisableExceptionWarning"
)


class Odd(date):
    """A value that can be pickled but not written as JSON, because its module is not trusted."""


def jobdir_of(
    folder: Path, cls: type[Spider] = NoStart, **settings: Any
) -> tuple[JobDir, list[tuple[str, CodecError]]]:
    skipped: list[tuple[str, CodecError]] = []
    spider = spider_of(folder, cls, **settings)
    converter = RequestConverter(spider)
    reader = JobDir(folder, spider, converter, lambda url, error: skipped.append((url, error)))
    return reader, skipped


def test_pending_requests_come_in_scrapys_order(tmp_path: Path) -> None:
    wanted = [("a", -1), ("b", 0), ("c", 5), ("d", 0), ("e", 5)]
    write(tmp_path, *(Request(f"http://x/{path}", priority=n) for path, n in wanted))
    reader, skipped = jobdir_of(tmp_path)
    entries = list(reader.pending())
    assert [entry.url[-1] for entry in entries] == ["e", "c", "d", "b", "a"]
    assert list(reader.pending()) == entries
    assert {entry.unique_key for entry in reader.seen()} == {one.unique_key for one in entries}
    assert not skipped


def test_equal_requests_with_dont_filter_get_different_keys(tmp_path: Path) -> None:
    write(tmp_path, *(Request("http://x/", dont_filter=True) for _ in range(3)))
    keys = [entry.unique_key for entry in jobdir_of(tmp_path)[0].pending()]
    assert len(set(keys)) == 3
    assert [entry.unique_key for entry in jobdir_of(tmp_path)[0].pending()] == keys


class TwoStarts(NoStart):
    async def start(self) -> Any:
        yield Request("http://x/")
        yield Request("http://x/", dont_filter=True)


def test_start_requests_get_the_keys_that_a_crawl_gives_them(tmp_path: Path) -> None:
    write(tmp_path, Request("http://y/"))
    reader, _ = jobdir_of(tmp_path, TwoStarts)
    keys = Keys(reader._crawler, "fingerprint")

    async def both() -> tuple[set[str], set[str]]:
        starts = [one async for one in TwoStarts().start() if keys.is_repeatable(one)]
        asked = {keys.of_start(keys.plain(one), "") for one in starts}
        return {entry.unique_key for entry in await reader.started()}, asked

    imported, asked = run_async(both())
    assert len(imported) == 1
    assert imported == asked


def test_a_request_that_cannot_be_written_is_reported_and_not_seen(tmp_path: Path) -> None:
    write(tmp_path, Request("http://x/1"), Request("http://x/2", meta={"odd": Odd(2026, 1, 1)}))
    reader, skipped = jobdir_of(tmp_path)
    assert [entry.url for entry in reader.pending()] == ["http://x/1"]
    ((url, _),) = skipped
    assert url == "http://x/2"
    assert len(list(reader.seen())) == 1


def test_the_seen_set_of_an_older_scrapy_is_read(tmp_path: Path) -> None:
    (tmp_path / "requests.seen").write_text("00ff\nab12\ncut")
    entries = list(jobdir_of(tmp_path)[0].seen())
    assert [entry.unique_key for entry in entries] == ["00ff", "ab12"]
    assert all(entry.handled_at is not None for entry in entries)


def test_a_truncated_seen_set_is_read_as_far_as_possible(tmp_path: Path) -> None:
    (tmp_path / "requests.seen").write_bytes(b"\x00\x02\x30\xff\x00\x02\xab\x12\x00\x02\xcd")
    assert [one.unique_key for one in jobdir_of(tmp_path)[0].seen()] == ["30ff", "ab12"]


def test_a_folder_that_is_not_a_jobdir_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"neither requests\.queue nor requests\.seen"):
        jobdir_of(tmp_path / "other")


def test_a_crawl_that_was_killed_is_refused(tmp_path: Path) -> None:
    write(tmp_path, Request("http://x/"))
    (tmp_path / "requests.queue" / "active.json").unlink()
    with pytest.raises(ConfigError, match=r"lacks active\.json.*SQLite.*Ctrl-C"):
        list(jobdir_of(tmp_path)[0].pending())


@pytest.mark.skipif(not hasattr(squeues, "PickleLifoSQLiteQueue"), reason="of Scrapy 2.19")
@pytest.mark.parametrize("priority_queue", ["DownloaderAwarePriorityQueue", "ScrapyPriorityQueue"])
@pytest.mark.parametrize("left", ["nothing", "an older state"])
def test_a_crawl_that_was_killed_is_read_from_sqlite_queues(
    tmp_path: Path, priority_queue: str, left: str
) -> None:
    settings = {
        "SCHEDULER_PRIORITY_QUEUE": f"scrapy.pqueues.{priority_queue}",
        "SCHEDULER_DISK_QUEUE": "scrapy.squeues.MarshalLifoSQLiteQueue",
        "SCHEDULER_START_DISK_QUEUE": "scrapy.squeues.PickleFifoSQLiteQueue",
    }
    start = {"is_start_request": True}
    odd = {"download_slot": "slot 1/ä"}
    write(
        tmp_path,
        *(Request(f"http://x/{n}", meta=meta) for n, meta in enumerate((start, start, odd, {}))),
        *(Request(f"http://y/{n}", priority=n - 5, meta=odd) for n in (4, 5, 6)),
        Request("http://[::1]/7", priority=-1, meta=start),
        **settings,
    )
    paused, _ = jobdir_of(tmp_path, **settings)
    entries = list(paused.pending())
    assert len(entries) == 8
    assert not paused.was_killed
    state = tmp_path / "requests.queue" / "active.json"
    if left == "nothing":
        state.unlink()
    else:
        state.write_text("{}")
        os.utime(state, (1, 1))
    # SQLite leaves a queue that was emptied just before, and the journal of a last change.
    (tmp_path / "requests.queue" / "9").touch()
    killed, _ = jobdir_of(tmp_path, **settings)
    assert list(killed.pending()) == entries
    assert killed.was_killed


def test_a_crawl_that_was_killed_after_it_was_resumed_is_refused(tmp_path: Path) -> None:
    write(tmp_path, Request("http://x/"), Request("http://x/2", priority=1))
    state = tmp_path / "requests.queue" / "active.json"
    state.write_text(state.read_text().replace("-1, ", "").replace(", -1", ""))
    with pytest.raises(ConfigError, match=r"does not list, in .*-1\."):
        list(jobdir_of(tmp_path)[0].pending())


def test_a_long_seen_set_is_not_loaded_into_memory(tmp_path: Path) -> None:
    lines = 10_000
    with (tmp_path / "requests.seen").open("wb") as file:
        file.writelines(b"\x00\x14" + n.to_bytes(20, "big") for n in range(lines))
    reader = jobdir_of(tmp_path)[0]
    tracemalloc.start()
    try:
        assert sum(1 for _ in reader.seen()) == lines
        assert tracemalloc.get_traced_memory()[1] < 10 * lines
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "wrong",
    [
        {"SCHEDULER_PRIORITY_QUEUE": "scrapy.pqueues.ScrapyPriorityQueue"},
        {"SCHEDULER_DISK_QUEUE": "scrapy.squeues.PickleFifoDiskQueue"},
        {"SCHEDULER_DISK_QUEUE": "scrapy.squeues.MarshalLifoDiskQueue"},
    ],
)
def test_an_error_names_the_settings_if_the_queue_classes_differ(
    tmp_path: Path, wrong: dict[str, str]
) -> None:
    write(tmp_path, Request("http://x/"), Request("http://x/2"))
    with pytest.raises(ConfigError, match="SCHEDULER_DISK_QUEUE"):
        list(jobdir_of(tmp_path, **wrong)[0].pending())
    shutil.rmtree(tmp_path / "requests.queue")
    assert list(jobdir_of(tmp_path, **wrong)[0].pending()) == []
