"""Google Cloud Storage on loopback, as far as gcsfs asks it: its JSON API, with preconditions, and faults on order."""

from __future__ import annotations

import json
import re
from collections import deque
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, unquote, urlsplit

from tests.loopback import Loopback

_PAGE = 3  # names of a listing that come at once, so that pages are turned


class LoopbackGcs(Loopback):
    """Objects by bucket/name. `faults` are what the next requests that change something suffer, one each: "" for
    nothing, "before" for a 503, and "after" for one that comes once the request was carried out. There is every bucket
    but one of the name `missing`."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.faults: deque[str] = deque()
        self.uploads: dict[str, tuple[str, bool, bytearray]] = {}
        self.refused = 0  # by a precondition
        super().__init__(self._handler())

    def put(self, name: str, data: bytes, create_only: bool) -> int:
        if create_only and name in self.objects:
            self.refused += 1
            return 412
        self.objects[name] = data
        return 200

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *arguments: object) -> None:
                pass

            def _answer(self, status: int, data: bytes = b"", **headers: str) -> None:
                self.send_response(status)
                for name, value in {"Content-Length": str(len(data)), **headers}.items():
                    self.send_header(name.replace("_", "-"), value)
                self.end_headers()
                self.wfile.write(data)

            def _said(self, status: int, document: object = None, **headers: str) -> None:
                self._answer(status, json.dumps(document or {}).encode(), Content_Type="application/json", **headers)

            def _asked(self) -> tuple[str, dict[str, str]]:
                parts = urlsplit(self.path)
                return parts.path, {name: values[0] for name, values in parse_qs(parts.query).items()}

            def do_GET(self) -> None:
                path, query = self._asked()
                if "/b/missing/" in path:
                    self._said(404, {"error": {"code": 404, "message": "no such bucket"}})
                elif match := re.fullmatch(r"/storage/v1/b/([^/]+)/o", path):
                    prefix = f"{match[1]}/{query.get('prefix', '')}"
                    names = sorted(name for name in outer.objects if name.startswith(prefix))
                    begin = int(query.get("pageToken", 0))
                    page = {
                        "kind": "storage#objects",
                        "items": [described(name) for name in names[begin : begin + _PAGE]],
                    }
                    self._said(200, page | ({"nextPageToken": str(begin + _PAGE)} if names[begin + _PAGE :] else {}))
                elif match := re.fullmatch(r"(/download)?/storage/v1/b/([^/]+)/o/(.+)", path):
                    name = f"{match[2]}/{unquote(match[3])}"
                    if name not in outer.objects:
                        self._said(404, {"error": {"code": 404, "message": "no such object"}})
                    elif not match[1]:
                        self._said(200, described(name))
                    else:
                        data = outer.objects[name]
                        bounds = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
                        if bounds:
                            data = data[int(bounds[1]) : int(bounds[2]) + 1 if bounds[2] else None]
                        self._answer(206 if bounds else 200, data)
                else:
                    self._said(200, {"name": path})

            def do_POST(self) -> None:
                data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                fault = outer.faults.popleft() if outer.faults else ""
                if "/b/missing/" in self.path:
                    self._said(404, {"error": {"code": 404, "message": "no such bucket"}})
                    return
                if fault == "before":
                    self._said(503, {"error": {"code": 503, "message": "busy"}})
                    return
                status, document, headers = self._take(data)
                if fault == "after":
                    self._said(503, {"error": {"code": 503, "message": "busy"}})
                    return
                self._said(status, document, **headers)

            def _take(self, data: bytes) -> tuple[int, dict, dict[str, str]]:
                path, query = self._asked()
                only = query.get("ifGenerationMatch") == "0"
                if path.startswith("/upload/session/"):
                    name, only, got = outer.uploads[path]
                    got += data
                    if self.headers["Content-Range"].endswith("/*"):
                        return 308, {}, {"Range": f"bytes=0-{len(got) - 1}"}
                    status = outer.put(name, bytes(got), only)
                    return status, described(name), {}
                bucket = path.split("/")[5]
                if query["uploadType"] == "resumable":
                    session = f"/upload/session/{len(outer.uploads)}"
                    outer.uploads[session] = f"{bucket}/{unquote(query['name'])}", only, bytearray()
                    return 200, {}, {"Location": outer.url + session}
                boundary = self.headers["Content-Type"].split('boundary="')[1].rstrip('"').encode()
                _, about, rest = data.split(b"--" + boundary, 2)
                stated = json.loads(about.split(b"\n\n", 1)[1])
                name = f"{bucket}/{stated['name']}"
                body = rest.split(b"\n\n", 1)[1].removesuffix(b"\n--" + boundary + b"--")
                status = outer.put(name, body, only)
                return status, described(name), {}

            def do_DELETE(self) -> None:
                path, _ = self._asked()
                if path.startswith("/upload/session/"):
                    self._said(499)
                    return
                match = re.fullmatch(r"/storage/v1/b/([^/]+)/o/(.+)", path)
                assert match is not None
                name = f"{match[1]}/{unquote(match[2])}"
                found = outer.objects.pop(name, None)
                self._answer(204 if found is not None else 404)

        def described(name: str) -> dict[str, str]:
            bucket, _, key = name.partition("/")
            size = str(len(outer.objects.get(name, b"")))
            return {"kind": "storage#object", "bucket": bucket, "name": key, "size": size, "generation": "1"}

        return Handler
