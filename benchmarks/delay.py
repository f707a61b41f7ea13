"""A TCP proxy that delays a server's answers, to simulate a round trip for any protocol.

It prints its address (host:port) on one line and runs until it is killed.
"""

from __future__ import annotations

import argparse
import asyncio
from asyncio import StreamReader, StreamWriter
from functools import partial

_READ = 1 << 16


async def _relay(
    target: tuple[str, int], delay: float, from_client: StreamReader, to_client: StreamWriter
) -> None:
    from_server, to_server = await asyncio.open_connection(*target)
    await asyncio.gather(
        _forward(from_client, to_server, 0),
        _forward(from_server, to_client, delay),
        return_exceptions=True,
    )


async def _forward(source: StreamReader, sink: StreamWriter, delay: float) -> None:
    loop = asyncio.get_running_loop()
    while data := await source.read(_READ):
        loop.call_later(delay, sink.write, data)
    loop.call_later(delay, sink.close)


async def _serve(target: tuple[str, int], delay: float) -> None:
    server = await asyncio.start_server(partial(_relay, target, delay), "127.0.0.1", 0)
    print("{}:{}".format(*server.sockets[0].getsockname()), flush=True)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("--delay", type=float, default=0.05, help="seconds")
    options = parser.parse_args()
    asyncio.run(_serve((options.host, options.port), options.delay))


if __name__ == "__main__":
    main()
