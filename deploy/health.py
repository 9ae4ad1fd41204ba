"""Says by its exit status whether a daemon answers: `health.py grpc HOST:PORT` (the master), `health.py http HOST:PORT` (metrics)."""

import sys
import urllib.request


def grpc_serves(address: str) -> bool:
    """Ask the standard gRPC health service; over TLS where BURSAR_TLS_CA (and BURSAR_TLS_CERT, BURSAR_TLS_KEY) say so."""
    import asyncio

    from grpc_health.v1 import health_pb2, health_pb2_grpc

    from bursar.runtime.client import connect
    from bursar.runtime.credentials import Credentials

    async def ask() -> bool:
        async with connect(address, Credentials.from_environment()) as channel:
            answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=3)
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    return asyncio.run(ask())


def http_serves(address: str) -> bool:
    """Fetch the metrics page, past any proxy."""
    client = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with client.open(f"http://{address}/metrics", timeout=3) as answer:
        return bool(answer.status == 200)


if __name__ == "__main__":
    kind, where = sys.argv[1:]
    try:
        healthy = {"grpc": grpc_serves, "http": http_serves}[kind](where)
    except Exception as problem:  # noqa: BLE001 - whatever it is, it is the answer
        sys.exit(f"{where} does not answer: {problem}")
    sys.exit(0 if healthy else f"{where} answers, but does not serve")
