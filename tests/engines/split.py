"""One AWS endpoint over two servers: requests to S3 go to a second S3 server, all others to the local AWS."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlparse

from tests.loopback import PROXY_PORT, Handler, serving

_OF_ONE_HOP = {"connection", "expect", "keep-alive", "transfer-encoding"}


@contextmanager
def split(s3: str, others: str) -> Iterator[str]:
    """Yields the URL of the endpoint. Requests stay as they were signed, so both servers must know the keys.

    Args:
        s3, others: the URLs of the two servers; the second one must accept requests for PROXY_PORT.
    """

    class Splitting(Handler):
        def forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            # a signature names its service: in a header or, of a presigned URL, in the query
            signed = self.headers.get("Authorization", "") + self.path
            is_s3 = "/s3/aws4_request" in signed or "%2Fs3%2Faws4_request" in signed
            connection = http.client.HTTPConnection(urlparse(s3 if is_s3 else others).netloc, timeout=60)
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in _OF_ONE_HOP:
                    connection.putheader(name, value)
            connection.endheaders(body)
            reply = connection.getresponse()
            content = reply.read()
            self.send_response_only(reply.status)
            for name, value in reply.getheaders():
                if name.lower() not in {*_OF_ONE_HOP, "content-length"}:
                    self.send_header(name, value)
            length = reply.getheader("Content-Length", "0") if self.command == "HEAD" else str(len(content))
            self.send_header("Content-Length", length)
            self.end_headers()
            self.wfile.write(content)
            connection.close()

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = forward

    with serving(Splitting, PROXY_PORT) as url:
        yield url
