"""Several endpoints on one machine: none may get the requests of another."""

import psutil

from common.run_paths import RunPaths
from tests.serve.conftest import make_run, start, stop

SHARED = {8404, 8500, 9101}  # default ports of Serve's proxies


def test_no_proxy_listens_on_a_default_port_of_serve(endpoint):
    listening = {}
    for process in psutil.Process(endpoint.process.pid).children(recursive=True):
        ports = {c.laddr.port for c in process.net_connections() if c.status == psutil.CONN_LISTEN}
        listening[" ".join(process.cmdline())] = ports
    fallback = [ports for name, ports in listening.items() if name.startswith("ray::ProxyActor")]
    assert len(fallback) == 1
    assert len(fallback[0]) > 0
    assert not SHARED & set().union(*listening.values())


def test_terminal_shows_our_lines_only(tmp_path):
    """Nothing of Ray Serve, vLLM or Ray at the start, while it runs and when it stops."""
    make_run(tmp_path / "run")
    stop(start(tmp_path / "run"))
    printed = (tmp_path / "serve.log").read_text()
    usage = printed.partition("serving ")[2].partition("in a browser")[0].splitlines()
    for line in printed.splitlines():
        ours = line.startswith(("dtype: ", "promotions: ", "serving ", "in a browser", "stopping"))
        assert not line.strip() or ours or line in usage, line
    assert (RunPaths(tmp_path / "run").logs / "ray.log").exists()
