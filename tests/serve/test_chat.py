"""The terminal chat where the endpoint fails."""

import socket
import subprocess
import sys
import threading

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
CHUNK = b'data: {"choices":[{"index":0,"delta":{"content":"Half an ans"}}]}\n\n'


def chat(port: int, lines: bytes) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "cluster.cli", "chat", f"http://127.0.0.1:{port}/v1", "--model=x"]
    return subprocess.run(command, input=lines, capture_output=True, timeout=60)


def test_an_endpoint_that_is_gone_is_told_and_the_chat_goes_on():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    result = chat(port, b"one\ntwo\n/quit\n")
    assert (result.returncode, result.stdout.count(b"Connection error")) == (0, 2), result.stderr


def test_an_answer_that_is_cut_off_is_shown_with_the_reason():
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer_half() -> None:
            connection, _ = server.accept()
            connection.recv(65536)
            connection.sendall(HEAD + f"{len(CHUNK):x}\r\n".encode() + CHUNK + b"\r\n")
            connection.close()

        threading.Thread(target=answer_half, daemon=True).start()
        result = chat(server.getsockname()[1], b"Hello \xff\n/quit\n")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(b"Half an ans")
    assert b"Connection error" in result.stdout
