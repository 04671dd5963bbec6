"""An anonymous, read-only S3 endpoint over a folder tree, which is also its own HTTPS twin (plain GET).

Own code rather than moto's server: moto keeps every object in memory and answers from a development web
server, while tilt series of gigabytes must come from disk at full speed, in ranges, with faults injected in
the middle of a body.
"""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime
from email.utils import formatdate
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote
from xml.sax.saxutils import escape

from portal_extract.demo.instruments import Request
from portal_extract.demo.loopback import LoopbackHandler, LoopbackServer
from portal_extract.demo.object_tree import ObjectTree, StoredObject

XML_TYPE = "application/xml"
ERROR_CODES = {
    400: "InvalidArgument",
    403: "AccessDenied",
    404: "NoSuchKey",
    412: "PreconditionFailed",
    416: "InvalidRange",
    429: "TooManyRequests",
    500: "InternalError",
    501: "NotImplemented",
    503: "SlowDown",
}
MAX_KEYS = 1000


class _ObjectHandler(LoopbackHandler):
    tree: ObjectTree

    def respond(self, request: Request) -> None:
        """Answer a GET or HEAD of an object or a bucket; everything else is denied."""
        if request.method not in ("GET", "HEAD"):
            self._refuse(request, 403, "AccessDenied")
            return
        bucket, _, key = request.path.partition("/")
        if not bucket:
            self._send_xml(_bucket_list(self.tree.buckets()))
        elif not self.tree.has_bucket(bucket):
            self._refuse(request, 404, "NoSuchBucket")
        elif key:
            self._respond_object(request, bucket, key)
        elif request.method == "HEAD":
            self.send_body(200, b"", {"x-amz-bucket-region": "us-west-2"})
        else:
            self._respond_listing(request, bucket)

    def error_body(self, request: Request, status: int) -> tuple[bytes, str]:
        """XML body of an injected error."""
        return _error_xml(ERROR_CODES.get(status, "InternalError"), request.path), XML_TYPE

    def _respond_object(self, request: Request, bucket: str, key: str) -> None:
        found = self.tree.find(bucket, key)
        if found is None:
            self._refuse(request, 404, "NoSuchKey")
            return
        expected, known = request.headers.get("if-match"), request.headers.get("if-none-match")
        if expected not in (None, "*", found.etag):
            self._refuse(request, 412, "PreconditionFailed")
            return
        if known in ("*", found.etag):
            self.send_body(304, b"", {"ETag": found.etag})
            return
        headers = {
            "Content-Type": "application/octet-stream",
            "ETag": found.etag,
            "Last-Modified": formatdate(found.modified_s, usegmt=True),
            "Accept-Ranges": "bytes",
        }
        self._send_object(request, found, headers)

    def _send_object(self, request: Request, found: StoredObject, headers: dict[str, str]) -> None:
        part = byte_range(request.range_header, found.size)
        if part is None:
            status, start, stop = 200, 0, found.size
        elif part[0] < part[1]:
            status, (start, stop) = 206, part
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{found.size}"
        else:
            headers = {"Content-Range": f"bytes */{found.size}", "Content-Type": XML_TYPE}
            self.send_body(416, _error_xml("InvalidRange", request.path), headers)
            return
        with open(found.path, "rb") as file:
            self.send_file_part(status, file, start, stop - start, headers)

    def _respond_listing(self, request: Request, bucket: str) -> None:
        query = {name: values[0] for name, values in parse_qs(request.query, True).items()}
        unknown = {"uploads", "versions", "policy", "acl", "versioning"} & query.keys()
        if unknown:
            self._refuse(request, 501, "NotImplemented")
        elif "location" in query:
            self._send_xml("<LocationConstraint>us-west-2</LocationConstraint>")
        elif not query.get("max-keys", "1").isdecimal():
            self._refuse(request, 400, "InvalidArgument")
        else:
            self._send_xml(listing_xml(self.tree, bucket, query))

    def _send_xml(self, xml: str) -> None:
        body = f'<?xml version="1.0" encoding="UTF-8"?>\n{xml}'.encode()
        self.send_body(200, body, {"Content-Type": XML_TYPE})

    def _refuse(self, request: Request, status: int, code: str) -> None:
        self.send_body(status, _error_xml(code, request.path), {"Content-Type": XML_TYPE})


class ObjectServer(LoopbackServer):
    """S3 endpoint on 127.0.0.1.

    Parameters
    ----------
    root
        Folder tree ``root/BUCKET/key``.
    packed_suffixes
        See :class:`~portal_extract.demo.object_tree.ObjectTree`.
    **settings
        ``port``, ``latency_s`` and ``bandwidth`` of
        :class:`~portal_extract.demo.loopback.LoopbackServer`.
    """

    def __init__(self, root: Path, *, packed_suffixes: tuple[str, ...] = (".mrc",), **settings: Any) -> None:
        self.tree = ObjectTree(root, packed_suffixes)
        super().__init__(type("Handler", (_ObjectHandler,), {"tree": self.tree}), **settings)

    def close(self) -> None:
        """Stop, and remove temporary files."""
        super().close()
        self.tree.close()


def byte_range(header: str | None, size: int) -> tuple[int, int] | None:
    """First byte and byte after the last one that a ``Range`` header asks for.

    Parameters
    ----------
    header
        Value of the header.
    size
        Bytes of the object.

    Returns
    -------
    tuple or None
        None for the whole object (no header, or one that S3 ignores: several ranges, bad syntax); an
        empty range if it cannot be satisfied.
    """
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", (header or "").replace(" ", ""))
    if match is None or match.group(0) == "bytes=-":
        return None
    first, last = match.groups()
    if not first:
        length = min(int(last), size)
        return size - length, size
    start = int(first)
    if not last:
        return (start, size) if start < size else (0, 0)
    if int(last) < start:
        return None
    return (start, min(int(last) + 1, size)) if start < size else (0, 0)


def listing_xml(tree: ObjectTree, bucket: str, query: dict[str, str]) -> str:
    """Answer ListObjectsV2 (or ListObjects, without ``list-type=2``).

    Parameters
    ----------
    tree
        The objects.
    bucket
        Name of an existing bucket.
    query
        ``prefix``, ``delimiter``, ``max-keys``, ``continuation-token``, ``start-after`` or ``marker``,
        ``encoding-type``.
    """
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    second = query.get("list-type") == "2"
    limit = min(int(query.get("max-keys", MAX_KEYS)), MAX_KEYS)
    after = query.get("continuation-token") or query.get("start-after" if second else "marker", "")
    entries: dict[str, os.DirEntry[str] | None] = {}
    for key, entry in tree.keys(bucket, prefix, deep=delimiter != "/"):
        head, found, _ = key[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
        entries[prefix + head + delimiter if found else key] = None if found else entry
    names = sorted((n for n in entries if n.encode() > after.encode()), key=str.encode)
    page, more = names[:limit], len(names) > limit > 0

    def text(value: str) -> str:
        return quote(value, safe="/") if query.get("encoding-type") == "url" else escape(value)

    parts = [
        f"<Name>{escape(bucket)}</Name><Prefix>{text(prefix)}</Prefix><MaxKeys>{limit}</MaxKeys>"
        f"<IsTruncated>{str(more).lower()}</IsTruncated>"
    ]
    if delimiter:
        parts.append(f"<Delimiter>{text(delimiter)}</Delimiter>")
    if "encoding-type" in query:
        parts.append("<EncodingType>url</EncodingType>")
    if second:
        parts.append(f"<KeyCount>{len(page)}</KeyCount>")
    if more:
        tag = "NextContinuationToken" if second else "NextMarker"
        value = escape(page[-1]) if second else text(page[-1])
        parts.append(f"<{tag}>{value}</{tag}>")
    for name in page:
        entry_or_none = entries[name]
        if entry_or_none is None:
            parts.append(f"<CommonPrefixes><Prefix>{text(name)}</Prefix></CommonPrefixes>")
        else:
            parts.append(_contents_xml(tree, text(name), entry_or_none))
    return (
        '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        + "".join(parts)
        + "</ListBucketResult>"
    )


def _contents_xml(tree: ObjectTree, name: str, entry: os.DirEntry[str]) -> str:
    modified = datetime.fromtimestamp(entry.stat().st_mtime, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
    return (
        f"<Contents><Key>{name}</Key><LastModified>{modified}</LastModified>"
        f"<ETag>{escape(tree.listed_etag(entry))}</ETag><Size>{tree.listed_size(entry)}</Size>"
        "<StorageClass>STANDARD</StorageClass></Contents>"
    )


def _bucket_list(names: list[str]) -> str:
    buckets = "".join(
        f"<Bucket><Name>{escape(name)}</Name><CreationDate>2024-01-01T00:00:00.000Z</CreationDate></Bucket>"
        for name in names
    )
    return f"<ListAllMyBucketsResult><Buckets>{buckets}</Buckets></ListAllMyBucketsResult>"


def _error_xml(code: str, resource: str) -> bytes:
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f"<Error><Code>{code}</Code><Message>{code}: refused by the embedded portal</Message>"
        f"<Resource>/{escape(resource)}</Resource><RequestId>EMBEDDED</RequestId></Error>"
    ).encode()
