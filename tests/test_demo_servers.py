"""The object store of the embedded portal, asked by s3fs, boto3, zarr and plain HTTP."""

from __future__ import annotations

import gzip
import socket
import threading
import time

import boto3
import cryoet_data_portal as portal_client
import numpy as np
import pytest
import requests
import s3fs
import zarr
from botocore import UNSIGNED
from botocore.client import Config
from botocore.exceptions import ClientError
from hypothesis import given
from hypothesis import strategies as st
from portal_fixture import BUCKET, SHARED_PORTAL, needs_shared_portal, write_hand_made_portal

from portal_extract.demo.instruments import Fault
from portal_extract.demo.object_server import ObjectServer, byte_range
from portal_extract.demo.portal import EmbeddedPortal, load_portal_folder, serve_in_process
from portal_extract.errors import SourceError

SERIES = "10001/TS 1+a%b/TiltSeries/100"
ARRAY = f"{SERIES}/TS 1+a%b.zarr/0"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("portal")
    write_hand_made_portal(folder)
    root = folder / "s3" / BUCKET
    (root / "blob.bin").write_bytes(bytes(range(256)) * 40)
    (root / "empty").write_bytes(b"")
    with gzip.open(root / "packed.mrc.gz", "wb") as file:
        file.write(b"unpacked" * 1000)
    for number in range(12):
        (root / "many" / str(number % 3)).mkdir(parents=True, exist_ok=True)
        (root / "many" / str(number % 3) / f"{number:02}").write_text(str(number))
    return folder


@pytest.fixture(scope="module")
def portal(folder):
    with load_portal_folder(folder) as portal:
        yield portal


@pytest.fixture(autouse=True)
def healthy(portal):
    portal.objects.fault = None
    portal.objects.latency_s = 0.0
    portal.objects.bandwidth = None
    portal.objects.log.clear()


@pytest.fixture
def get(portal):
    def get(key, **headers):
        quoted = requests.utils.quote(key)
        return requests.get(f"{portal.s3_endpoint_url}/{BUCKET}/{quoted}", headers=headers, timeout=10)

    return get


def s3_client(portal, **config):
    return boto3.client(
        "s3",
        endpoint_url=portal.s3_endpoint_url,
        region_name="us-west-2",
        config=Config(signature_version=UNSIGNED, **config),
    )


def file_system(portal):
    return s3fs.S3FileSystem(anon=True, endpoint_url=portal.s3_endpoint_url, skip_instance_cache=True)


def test_zarr_reads_a_series_whose_name_must_be_escaped(portal, folder):
    expected = zarr.open_array(folder / "s3" / BUCKET / ARRAY, mode="r")[:]
    options = {"anon": True, "endpoint_url": portal.s3_endpoint_url}
    array = zarr.open_array(f"s3://{BUCKET}/{ARRAY}", mode="r", storage_options=options)
    np.testing.assert_array_equal(array[:], expected)
    chunks = {entry.path for entry in portal.objects.log.entries if entry.path.endswith("/0/0")}
    assert chunks == {f"{BUCKET}/{ARRAY}/{z}/0/0" for z in range(3)}


def test_s3fs_lists_and_reads_ranges(portal):
    store = file_system(portal)
    assert sorted(store.ls(f"{BUCKET}/{SERIES}")) == [
        f"{BUCKET}/{SERIES}/TS 1+a%b.zarr",
        f"{BUCKET}/{SERIES}/notes.txt",
    ]
    assert len(store.find(f"{BUCKET}/many")) == 12
    assert store.cat_file(f"{BUCKET}/blob.bin", start=300, end=310) == bytes(range(44, 54))
    assert store.cat_file(f"{BUCKET}/blob.bin", start=-3) == b"\xfd\xfe\xff"
    with store.open(f"{BUCKET}/blob.bin") as file:
        file.seek(10000)
        assert file.read() == bytes(range(16, 256))
    with pytest.raises(FileNotFoundError):
        store.cat_file(f"{BUCKET}/nothing")


def test_listing_pages_follow_each_other_in_key_order(portal):
    client = s3_client(portal)
    for operation in ("list_objects_v2", "list_objects"):
        pages = client.get_paginator(operation).paginate(
            Bucket=BUCKET, Prefix="many/", PaginationConfig={"PageSize": 5}
        )
        keys = [[item["Key"] for item in page["Contents"]] for page in pages]
        assert [len(page) for page in keys] == [5, 5, 2]
        assert [key for page in keys for key in page] == sorted(f"many/{n % 3}/{n:02}" for n in range(12))


def test_listing_rolls_up_folders(portal):
    client = s3_client(portal)
    answer = client.list_objects_v2(Bucket=BUCKET, Prefix="many/", Delimiter="/")
    assert [item["Prefix"] for item in answer["CommonPrefixes"]] == ["many/0/", "many/1/", "many/2/"]
    assert answer["KeyCount"] == 3
    by_digit = client.list_objects_v2(Bucket=BUCKET, Prefix="many/0/", Delimiter="0")
    assert [item["Prefix"] for item in by_digit["CommonPrefixes"]] == ["many/0/0"]
    names = client.list_objects_v2(Bucket=BUCKET, Prefix="10001/TS 1+a", Delimiter="/")
    assert names["CommonPrefixes"] == [{"Prefix": "10001/TS 1+a%b/"}]
    assert client.list_objects_v2(Bucket=BUCKET, Prefix="nothing/")["KeyCount"] == 0


@pytest.mark.parametrize(
    ("header", "status", "content", "content_range"),
    [
        ("bytes=2-4", 206, b"\x02\x03\x04", "bytes 2-4/10240"),
        ("bytes=10238-", 206, b"\xfe\xff", "bytes 10238-10239/10240"),
        ("bytes=10238-99999", 206, b"\xfe\xff", "bytes 10238-10239/10240"),
        ("bytes=-2", 206, b"\xfe\xff", "bytes 10238-10239/10240"),
        ("bytes=10240-", 416, None, "bytes */10240"),
        ("bytes=-0", 416, None, "bytes */10240"),
        ("bytes=0-1,4-5", 200, bytes(range(256)) * 40, None),
        ("lines=1-2", 200, bytes(range(256)) * 40, None),
    ],
)
def test_ranges(get, header, status, content, content_range):
    answer = get("blob.bin", Range=header)
    assert answer.status_code == status
    assert answer.headers.get("Content-Range") == content_range
    if content is None:
        assert "<Code>InvalidRange</Code>" in answer.text
    else:
        assert answer.content == content


@given(st.integers(0, 50), st.integers(0, 60), st.integers(0, 60))
def test_ranges_agree_with_slices(size, first, last):
    data = bytes(range(size))
    both = byte_range(f"bytes={first}-{last}", size)
    if first <= last:
        assert data[slice(*both)] == data[first : last + 1]
    else:
        assert both is None
    assert data[slice(*byte_range(f"bytes={first}-", size))] == data[first:]
    assert data[slice(*byte_range(f"bytes=-{last}", size))] == (data[-last:] if last else b"")


def test_objects_have_tags_and_dates(get, portal):
    answer = get("blob.bin")
    assert answer.headers["Accept-Ranges"] == "bytes"
    assert answer.headers["Last-Modified"].endswith("GMT")
    tag = answer.headers["ETag"]
    assert get("blob.bin", **{"If-Match": tag}).status_code == 200
    assert get("blob.bin", **{"If-Match": '"other"'}).status_code == 412
    assert get("blob.bin", **{"If-None-Match": tag}).status_code == 304
    assert get("empty").content == b""
    listed = s3_client(portal).list_objects_v2(Bucket=BUCKET, Prefix="blob.bin")["Contents"][0]
    assert (listed["ETag"], listed["Size"]) == (tag, 10240)


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        (f"{BUCKET}/nothing", 404, "NoSuchKey"),
        (f"{BUCKET}/many", 404, "NoSuchKey"),
        (f"{BUCKET}/many/", 404, "NoSuchKey"),
        ("no-bucket/blob.bin", 404, "NoSuchBucket"),
        (f"{BUCKET}/%2e%2e/%2e%2e/tables.json", 404, "NoSuchKey"),
        (f"{BUCKET}/a%00b", 404, "NoSuchKey"),
        (f"{BUCKET}?versions", 501, "NotImplemented"),
    ],
)
def test_errors_are_those_of_s3(portal, path, status, code):
    answer = requests.get(f"{portal.s3_endpoint_url}/{path}", timeout=10)
    assert answer.status_code == status
    assert f"<Code>{code}</Code>" in answer.text


def test_writing_is_denied(portal):
    with pytest.raises(ClientError, match="AccessDenied"):
        s3_client(portal).put_object(Bucket=BUCKET, Key="new", Body=b"x")


def test_head_tells_the_size_without_a_body(portal):
    answer = requests.head(f"{portal.s3_endpoint_url}/{BUCKET}/blob.bin", timeout=10)
    assert (answer.status_code, answer.headers["Content-Length"], answer.content) == (200, "10240", b"")
    assert requests.head(f"{portal.s3_endpoint_url}/{BUCKET}/nothing", timeout=10).status_code == 404
    assert portal.objects.log.body_bytes == 0


def test_packed_files_are_shown_unpacked(get, portal):
    assert get("packed.mrc").content == b"unpacked" * 1000
    assert get("packed.mrc", Range="bytes=8-15").content == b"unpacked"
    store = file_system(portal)
    listed = {info["name"]: info for info in store.ls(BUCKET, detail=True)}
    assert listed[f"{BUCKET}/packed.mrc"]["size"] == 8000
    assert f"{BUCKET}/packed.mrc.gz" not in listed
    assert listed[f"{BUCKET}/packed.mrc"]["ETag"] == get("packed.mrc").headers["ETag"]


def test_a_connection_is_kept_for_many_requests(portal):
    with requests.Session() as session:
        ports = set()
        for _ in range(3):
            with session.get(
                f"{portal.s3_endpoint_url}/{BUCKET}/blob.bin", stream=True, timeout=10
            ) as answer:
                ports.add(answer.raw.connection.sock.getsockname())
                assert len(answer.content) == 10240
    assert len(ports) == 1


def test_many_connections_at_once(portal, get):
    portal.objects.latency_s = 0.2
    results: list[int] = []
    threads = [
        threading.Thread(target=lambda: results.append(len(get("blob.bin").content))) for _ in range(64)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert results == [10240] * 64


def test_the_log_tells_what_was_asked_and_sent(portal, get):
    get("blob.bin", Range="bytes=0-9")
    get("nothing")
    first, second = portal.objects.log.entries
    assert (first.method, first.path, first.range_header) == ("GET", f"{BUCKET}/blob.bin", "bytes=0-9")
    assert (first.status, first.body_bytes) == (206, 10)
    assert second.status == 404
    assert portal.objects.log.count("GET", "blob") == 1
    assert portal.objects.log.count(status=404) == 1


def test_a_status_can_be_injected_for_the_first_attempts(portal, get):
    portal.objects.fault = lambda request: Fault(status=503) if request.attempt < 2 else None
    answers = [get("blob.bin") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [503, 503, 200]
    assert "<Code>SlowDown</Code>" in answers[0].text


def test_a_denied_object_can_be_told_from_a_missing_one(portal):
    portal.objects.fault = lambda request: Fault(status=403) if "blob" in request.path else None
    with pytest.raises(PermissionError):
        file_system(portal).cat_file(f"{BUCKET}/blob.bin", start=0, end=1)


def test_a_connection_can_be_reset_and_a_body_cut(portal, get):
    portal.objects.fault = lambda request: Fault(reset=True)
    with pytest.raises(requests.ConnectionError):
        get("blob.bin")
    portal.objects.fault = lambda request: Fault(body_bytes=100)
    with pytest.raises((requests.ConnectionError, requests.exceptions.ChunkedEncodingError)):
        get("blob.bin")
    assert portal.objects.log.body_bytes == 100


def test_a_body_can_stall(portal):
    portal.objects.fault = lambda request: Fault(body_bytes=100, stall_s=60)
    with pytest.raises(requests.ConnectionError):
        requests.get(f"{portal.s3_endpoint_url}/{BUCKET}/blob.bin", timeout=0.3)


def test_the_bandwidth_is_shared(portal, get):
    portal.objects.bandwidth = 50_000.0
    started = time.monotonic()
    threads = [threading.Thread(target=get, args=("blob.bin",)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    # a lower bound, which no slow machine can break
    assert time.monotonic() - started >= 3 * 10240 / 50_000


def test_closing_ends_stalled_connections(folder):
    server = ObjectServer(folder / "s3").start()
    server.fault = lambda request: Fault(delay_s=600)
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(f"GET /{BUCKET}/blob.bin HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        while not server.log.entries:
            time.sleep(0.01)
        server.close()
        assert connection.recv(100) == b""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port), timeout=5)


def test_https_fields_point_at_the_object_store(portal, tmp_path):
    client = portal_client.Client(portal.portal_url)
    series = portal_client.TiltSeries.get_by_id(client, 21)
    series.download_mrcfile(dest_path=str(tmp_path))
    assert (tmp_path / "notes.txt").read_text() == "some words\n"


def test_https_fields_can_be_left_alone(folder):
    with load_portal_folder(folder, local_https=False) as real:
        series = portal_client.TiltSeries.get_by_id(portal_client.Client(real.portal_url), 21)
    assert series.https_mrc_file.startswith("https://files.cryoetdataportal.cziscience.com/10001/")


def test_the_environment_points_clients_here(portal, monkeypatch):
    for name, value in portal.environment().items():
        monkeypatch.setenv(name, value)
    assert portal.environment()["CRYOET_PORTAL_URL"] == portal.portal_url
    store = s3fs.S3FileSystem(anon=True, skip_instance_cache=True)
    assert store.cat_file(f"{BUCKET}/{SERIES}/notes.txt") == b"some words\n"


def test_a_portal_of_its_own_process(folder):
    with serve_in_process(folder, latency_s=0.001) as remote:
        assert len(portal_client.Run.find(portal_client.Client(remote.portal_url))) == 3
        requests.get(f"{remote.s3_endpoint_url}/{BUCKET}/blob.bin", timeout=10)
        assert remote.counts() == {"api_requests": 1, "object_requests": 1, "object_bytes": 10240}
        remote.clear()
        assert remote.counts()["api_requests"] == 0
        address = remote.s3_endpoint_url
    with pytest.raises(requests.ConnectionError):
        requests.get(address, timeout=5)


def test_a_folder_that_is_no_portal_is_refused(tmp_path):
    with pytest.raises(SourceError, match="no folder s3/"):
        load_portal_folder(tmp_path)
    (tmp_path / "s3").mkdir()
    with pytest.raises(SourceError, match=r"tables\.json: not there"):
        load_portal_folder(tmp_path)
    (tmp_path / "tables.json").write_text("{")
    with pytest.raises(SourceError, match="not readable as JSON"):
        load_portal_folder(tmp_path)


def test_a_portal_that_was_never_started_can_be_closed(folder):
    EmbeddedPortal(folder / "s3", {}).objects.close()


@pytest.mark.shared
@needs_shared_portal
def test_the_reference_portal_reads_through_zarr_as_through_its_mrc_twin():
    with load_portal_folder(SHARED_PORTAL) as portal:
        client = portal_client.Client(portal.portal_url)
        options = {"anon": True, "endpoint_url": portal.s3_endpoint_url}
        store = s3fs.S3FileSystem(**options, skip_instance_cache=True)
        for series in portal_client.TiltSeries.find(client):
            array = zarr.open_array(f"{series.s3_omezarr_dir}/0", mode="r", storage_options=options)[:]
            twin = store.cat_file(series.s3_mrc_file)
            assert len(twin) == series.file_size_mrc
            np.testing.assert_array_equal(np.frombuffer(twin[1024:], "<f4"), array.ravel())
        assert store.find(BUCKET)
