"""A real HTTP server that speaks S3 and keeps what it is given in memory, in a process that can be stopped."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import boto3
from moto.server import ThreadedMotoServer
from serving import free_port

KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


@dataclass
class S3Server:
    """The server's port, and a way to stop it for a time; its buckets outlive that."""

    port: int
    server: ThreadedMotoServer

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to know to use it."""
        return {**KEYS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}"}

    def stop(self) -> None:
        """Refuse connections from now on."""
        self.server.stop()

    def start(self) -> None:
        """Answer again, on the same port."""
        self.server = ThreadedMotoServer("127.0.0.1", self.port, verbose=False)
        self.server.start()


@contextlib.contextmanager
def running_s3() -> Iterator[S3Server]:
    """A server with an empty bucket `ward`."""
    port = free_port()
    found = S3Server(port, ThreadedMotoServer("127.0.0.1", port, verbose=False))
    found.server.start()
    before = dict(os.environ)
    os.environ.update(found.environment)
    try:
        boto3.client("s3").create_bucket(Bucket="ward")
        yield found
    finally:
        found.stop()
        os.environ.clear()
        os.environ.update(before)
