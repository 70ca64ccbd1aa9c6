"""`hero label serve`: the workplace's own process."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import sqlalchemy as sa
import uvicorn
from rich.console import Console

from common.errors import UserError
from common.network import is_loopback
from label.api.app import create_app
from label.store.people import create_invite
from label.store.tables import person
from label.workplace import Workplace


def serve_forever(workplace: Workplace, console: Console) -> None:
    """Serves until SIGINT or SIGTERM. Raises UserError for an address that cannot be listened on, or that
    others reach without TLS."""
    settings = workplace.settings
    check_address(settings.host, settings.public_url)
    listener = _listen(settings.host, settings.port)
    console.print(f"workplace: {workplace.url} in a browser", highlight=False, soft_wrap=True)
    with workplace.database.write() as connection:
        if connection.execute(sa.select(person.c.id).where(person.c.role == "owner")).first() is None:
            code = create_invite(connection, "owner", "training")
            console.print(f"owner's invite: {workplace.url}/join#{code}", highlight=False, soft_wrap=True)
    level = {"warning": logging.WARNING, "info": logging.INFO}[settings.log_level]
    config = uvicorn.Config(
        create_app(workplace), log_level=level, access_log=settings.log_level == "info", server_header=False
    )
    # uvicorn raises the signal again after it has ended requests in progress.
    with suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listener])
    workplace.database.close()


@contextmanager
def serving(workplace: Workplace) -> Iterator[str]:
    """The address of a server for this workplace on this machine, in a thread, while the block lasts: for
    simulated teams. The workplace stays open."""
    server = uvicorn.Server(uvicorn.Config(create_app(workplace), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.02)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def check_address(host: str, public_url: str | None) -> None:
    """Raises UserError for an address that other machines reach while the session cookies would travel in
    the clear."""
    try:
        address = socket.getaddrinfo(host, None)[0][4][0]
    except OSError as error:
        raise UserError(f"label.host={host}: no such address here ({error})") from None
    if not is_loopback(str(address)) and not (public_url or "").startswith("https://"):
        raise UserError(
            f"label.host={host}: other machines reach this address, and sign-ins would travel in the clear; "
            "put a proxy with TLS in front and set label.public_url to its https:// address, or listen on "
            "127.0.0.1"
        )


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        raise UserError(f"label.port={port}: cannot listen on {host}:{port} ({error.strerror})") from None
    return listener
