"""One connection to the loopback Hub: reads its requests, sends the replies at the Hub's pace, with the faults it was asked for."""

import contextlib
import socket
import struct
import time
import urllib.parse
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any

from tests.loopback_hub.faults import Fault, Request
from tests.loopback_hub.replies import Call, Denied, FilePart, Reply, json_reply, with_fewer_bytes
from tests.loopback_hub.routes import reply_to

if TYPE_CHECKING:
    from tests.loopback_hub.server import Answer, LoopbackHub

COUNTERS = "/__counters"  # of the Hub itself: in no log
END = 1 << 62  # of a range that has none


class Connection(BaseHTTPRequestHandler):
    hub: "LoopbackHub"
    protocol_version = "HTTP/1.1"  # stays open for more requests
    disable_nagle_algorithm = True

    def log_request(self, *_: Any) -> None:
        """Nobody reads it: the Hub has its own log."""

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # the client has gone
            super().handle()

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        if self.path == COUNTERS:
            return self._send(json_reply(self.hub.counters()), None, None)
        call = self._call()
        fault = self.hub.asked(call.request)
        time.sleep(self.hub.latency_seconds)
        reply = self._reply(call, fault)
        return self._send(reply, fault, self.hub.answered(call.request, reply.status))

    def _call(self) -> Call:
        address = urllib.parse.urlsplit(self.path)
        parts = [urllib.parse.unquote(part) for part in address.path.strip("/").split("/")]
        token = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        request = Request(self.command, "/" + "/".join(parts), self._range(), token is not None)
        return Call(request, parts, urllib.parse.parse_qs(address.query), token, self._body())

    def _range(self) -> tuple[int, int] | None:
        told = self.headers.get("Range", "")
        if not told.startswith("bytes="):
            return None
        first, _, last = told.removeprefix("bytes=").partition("-")
        return (int(first), int(last) + 1 if last else END) if first else (-int(last), END)

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            return b"".join(self._chunks())
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def _reply(self, call: Call, fault: Fault | None) -> Reply:
        if fault is None:
            return self._routed(call)
        if fault.first is not None:
            fault.first()
        if fault.status is not None:
            return json_reply({"error": f"a fault: {fault.status}"}, fault.status, fault.headers)
        if fault.body == "whole":
            return self._routed(replace(call, request=replace(call.request, range=None)))
        return with_fewer_bytes(self._routed(call), fault.at) if fault.body == "fewer" else self._routed(call)

    def _routed(self, call: Call) -> Reply:
        try:
            return reply_to(self.hub, call)
        except Denied as denied:
            return denied.reply

    def _send(self, reply: Reply, fault: Fault | None, answer: "Answer | None") -> None:
        self.send_response(reply.status)
        for name, value in {**reply.headers, "Content-Length": str(reply.length)}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        repository = reply.body.repository if isinstance(reply.body, FilePart) else None
        for piece in self._paced(fault.spoilt(reply.pieces()) if fault is not None else reply.pieces()):
            if answer is not None:  # before the client has the piece: who asks when it has it is told all
                self.hub.count(answer, len(piece), repository)
            self.wfile.write(piece)
        if fault is not None and fault.breaks_off(reply.length):
            self._break_off(fault)

    def _paced(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        began, passed = time.monotonic(), 0
        for piece in pieces:
            yield piece
            passed += len(piece)
            if self.hub.bytes_per_second is not None:
                time.sleep(max(0.0, passed / self.hub.bytes_per_second - (time.monotonic() - began)))

    def _break_off(self, fault: Fault) -> None:
        self.close_connection = True
        if fault.body == "stalled":
            time.sleep(fault.seconds)
        if fault.body == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()  # now: a shutdown would say a proper end first
