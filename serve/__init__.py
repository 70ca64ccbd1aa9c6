"""What people and clients use: the endpoint, live promotion, the pages."""

import os
import sys

# Serve's fast path: HAProxy, then replicas that answer HTTP themselves. Otherwise every chunk of
# every stream passes a Python proxy, and throughput is 0.43 of vLLM's own server on two cores
# (bench/serving.py). Ray reads these variables when ray.serve is first imported, in every process
# of a cluster; a cluster that is running must have been started with them.
if sys.platform == "linux":
    os.environ.setdefault("RAY_SERVE_ENABLE_HA_PROXY", "1")
    os.environ.setdefault("RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S", "1")
    # A process that was killed accepts connections for another tenth of a second. HAProxy must
    # therefore send a request to another replica also after an empty answer. Once only: a request
    # that crashes its engine must not crash them all.
    os.environ.setdefault("RAY_SERVE_HAPROXY_RETRY_ON", "conn-failure empty-response")
    os.environ.setdefault("RAY_SERVE_HAPROXY_RETRIES", "1")
