"""A Hugging Face hub of our own on 127.0.0.1: as much of its language as a snapshot takes."""

import json
import os
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NOWHERE = "http://127.0.0.1:9"


@dataclass
class Hub:
    """What the hub has, and what it was asked.

    Attributes:
        repo: Its one repository, ``org/name``.
        files: The files in it.
        status, code: What it answers instead, as an HTTP status and the hub's own code.
        asked: The paths of all requests.
        sent: Bytes of each file that went out.
        ranges: Where downloads of each file began, in bytes.
        breaks: Files whose next download breaks off after so many bytes; at 0 it breaks off every time.
    """

    repo: str = "org/tiny"
    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    status: int = 200
    code: str = ""
    asked: list[str] = field(default_factory=list)
    sent: Counter[str] = field(default_factory=Counter)
    ranges: dict[str, list[int]] = field(default_factory=dict)
    breaks: dict[str, int] = field(default_factory=dict)

    def add(self, folder: Path) -> None:
        """Put a folder's files into the repository."""
        self.files.update({path.name: path.read_bytes() for path in folder.iterdir()})

    def environment(self, home: Path, **more: str) -> dict[str, str]:
        """The environment of a process that knows this hub only, with a download cache of its own."""
        return {
            **{key: value for key, value in os.environ.items() if not key.startswith("HF_")},
            "HF_HOME": str(home),
            "HF_ENDPOINT": self.url,
            "NO_PROXY": "127.0.0.1",
            **more,
        }

    @property
    def weights_sent(self) -> dict[str, int]:
        """Bytes that went out, of each weight file."""
        return {name: count for name, count in sorted(self.sent.items()) if name.endswith(".safetensors")}


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Run a hub for as long as the block takes."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            hub.asked.append(path)
            if hub.status != 200:
                self.answer(b"{}", status=hub.status, headers={"X-Error-Code": hub.code})
            elif path.startswith(f"/api/models/{hub.repo}/tree/"):
                entries = [
                    {"type": "file", "path": name, "size": len(data), "oid": sha1(data).hexdigest()}
                    for name, data in hub.files.items()
                ]
                self.answer(json.dumps(entries).encode())
            elif path.startswith(f"/api/models/{hub.repo}"):
                siblings = [{"rfilename": name} for name in hub.files]
                self.answer(json.dumps({"id": hub.repo, "sha": COMMIT, "siblings": siblings}).encode())
            elif path.startswith(f"/{hub.repo}/resolve/") and path.rpartition("/")[2] in hub.files:
                self.file(path.rpartition("/")[2])
            else:
                self.answer(b"{}", status=404, headers={"X-Error-Code": "EntryNotFound"})

        do_HEAD = do_GET

        def file(self, name: str) -> None:
            data = hub.files[name]
            headers = {
                "ETag": f'"{sha1(data).hexdigest()}"',
                "X-Repo-Commit": COMMIT,
                "Accept-Ranges": "bytes",
            }
            start = int((self.headers["Range"] or "bytes=0-").removeprefix("bytes=").partition("-")[0])
            if start:
                headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            stop = len(data)
            if self.command == "GET":
                hub.ranges.setdefault(name, []).append(start)
                if (most := hub.breaks.get(name)) is not None:
                    stop = start + most
                    if most:
                        del hub.breaks[name]
                hub.sent[name] += stop - start
            self.answer(data[start:], status=206 if start else 200, headers=headers, most=stop - start)

        def answer(
            self,
            data: bytes,
            *,
            status: int = 200,
            headers: dict[str, str] | None = None,
            most: int | None = None,
        ) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data[:most])
                if most is not None and most < len(data):
                    self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
