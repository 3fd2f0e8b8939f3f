"""The server behind Envoy: the keys of the identity provider, and an echo of the forwarded headers."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

JWKS_PATH = "/jwks"


class Upstream:
    def __init__(self) -> None:
        self.jwks: dict = {"keys": []}
        upstream = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self, document: dict) -> None:
                body = json.dumps(document).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self) -> None:
                self.answer(upstream.jwks)

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self.answer({name.lower(): value for name, value in self.headers.items()})

            def log_message(self, *_) -> None:
                """Envoy's own log is enough."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def jwks_uri(self) -> str:
        return f"http://127.0.0.1:{self.port}{JWKS_PATH}"

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
