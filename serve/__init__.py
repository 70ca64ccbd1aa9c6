"""What people and clients touch: the endpoint, live promotion, the pages."""

import os
import sys

# Serve's own fast path: HAProxy, then replicas that speak HTTP themselves. Otherwise every chunk of every stream passes
# a Python proxy, and throughput is 0.43 of vLLM's own server on two cores (bench/serving.py). Ray reads this when
# ray.serve is first imported and in every process of a cluster; one that is already up must have been started with it.
if sys.platform == "linux":
    os.environ.setdefault("RAY_SERVE_ENABLE_HA_PROXY", "1")
    os.environ.setdefault("RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S", "1")
    # A process that was killed still accepts connections for a tenth of a second, so HAProxy has to ask another replica
    # after silence as well: once, lest a request that ends its engine end them all.
    os.environ.setdefault("RAY_SERVE_HAPROXY_RETRY_ON", "conn-failure empty-response")
    os.environ.setdefault("RAY_SERVE_HAPROXY_RETRIES", "1")
