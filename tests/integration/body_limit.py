"""A reverse proxy that takes no request beyond a size, as nginx's ``client_max_body_size`` does."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import BinaryIO
from urllib.parse import urlsplit

PAGE = b"<html>\r\n<head><title>413 Request Entity Too Large</title></head>\r\n</html>\r\n"
OWN = {"transfer-encoding", "content-length", "connection", "host", "date", "server"}


def chunked(stream: BinaryIO) -> bytes:
    body = b""
    while size := int(stream.readline().split(b";")[0], 16):
        body += stream.read(size)
        stream.readline()
    stream.readline()
    return body


@contextmanager
def limiting(target: str, limit: int) -> Iterator[str]:
    """Serve ``target`` up to requests of ``limit`` bytes; yields the proxy's address."""
    host = urlsplit(target).netloc

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            body = chunked(self.rfile) if "transfer-encoding" in self.headers else self.rfile.read(length)  # type: ignore[arg-type]
            if len(body) > limit:
                self.answer(413, [("content-type", "text/html")], PAGE)
                return
            connection = http.client.HTTPConnection(host, timeout=60)
            headers = {name: value for name, value in self.headers.items() if name.lower() not in OWN}
            connection.request(self.command, self.path, body or None, headers)
            response = connection.getresponse()
            self.answer(response.status, response.getheaders(), response.read())
            connection.close()

        do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

        def answer(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
            self.send_response(status)
            for name, value in headers:
                if name.lower() not in OWN:
                    self.send_header(name, value)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
