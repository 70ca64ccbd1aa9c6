"""Several endpoints on one machine: none may get the requests of another."""

import psutil

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
