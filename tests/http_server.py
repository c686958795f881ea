"""A local web server that misbehaves on purpose: cuts connections, ignores ranges, lies about sizes, changes files."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Site:
    """What the server does; tests change it while it runs.

    Attributes:
        files: path -> contents.
        cut_after: bytes after which a connection is cut, one entry per request, then none is.
        ranges: whether ranges are honoured.
        etag: version that is stated; "" = none.
        extra_length: added to the stated length.
        state_length: whether the length is stated at all.
        errors: status codes for the next requests.
        hold: the next connection stops in the middle until this is set; then none does.
        redirect: path -> address.
        requests: (path, Range header) of every request.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    cut_after: list[int] = field(default_factory=list)
    ranges: bool = True
    etag: str = '"1"'
    extra_length: int = 0
    state_length: bool = True
    errors: list[int] = field(default_factory=list)
    hold: threading.Event | None = None
    redirect: dict[str, str] = field(default_factory=dict)
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    url: str = ""


@contextmanager
def serving() -> Iterator[Site]:
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            answer(self, site)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    site.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def answer(request: BaseHTTPRequestHandler, site: Site) -> None:
    wanted = request.headers.get("Range")
    site.requests.append((request.path, wanted))
    if site.errors:
        request.send_error(site.errors.pop(0))
        return
    if request.path in site.redirect:
        request.send_response(302)
        request.send_header("Location", site.redirect[request.path])
        request.end_headers()
        return
    if request.path not in site.files:
        request.send_error(404)
        return
    data = site.files[request.path]
    condition = request.headers.get("If-Range")
    start = 0
    if wanted and site.ranges and condition in (None, site.etag or None):
        start = int(wanted.removeprefix("bytes=").removesuffix("-"))
    if start >= len(data) and start:
        request.send_response(416)
        request.send_header("Content-Range", f"bytes */{len(data)}")
        request.send_header("Content-Length", "0")
        request.end_headers()
        return
    request.send_response(206 if start else 200)
    stated = len(data) + site.extra_length
    if start:
        request.send_header("Content-Range", f"bytes {start}-{stated - 1}/{stated}")
    if site.etag:
        request.send_header("ETag", site.etag)
    if site.state_length:
        request.send_header("Content-Length", str(stated - start))
    request.end_headers()
    rest = data[start:]
    if site.hold is not None:
        hold, site.hold = site.hold, None
        request.wfile.write(rest[: len(rest) // 2])
        hold.wait(60)
        request.close_connection = True
        return
    request.wfile.write(rest[: site.cut_after.pop(0)] if site.cut_after else rest)
    request.close_connection = True
