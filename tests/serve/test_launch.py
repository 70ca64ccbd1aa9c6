"""Several endpoints on one machine: nobody else may get their requests."""

import psutil

SHARED = {8404, 8500, 9101}  # where the proxies of every Serve listen that was not told otherwise


def test_no_proxy_listens_where_that_of_another_endpoint_may(endpoint):
    listening = {}
    for process in psutil.Process(endpoint.process.pid).children(recursive=True):
        ports = {c.laddr.port for c in process.net_connections() if c.status == psutil.CONN_LISTEN}
        listening[" ".join(process.cmdline())] = ports
    fallback = [ports for name, ports in listening.items() if name.startswith("ray::ProxyActor")]
    assert len(fallback) == 1
    assert len(fallback[0]) > 0
    assert not SHARED & set().union(*listening.values())
