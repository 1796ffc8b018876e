"""A process for the tests beside it: listens or asks, in a loop, until it is killed.

Usage: node.py listen|ask SCHEME_ADDRESS FOLDER [BYTES]
"""

import asyncio
import sys

from lmcache_kit.builtin.transports.options import ShmOptions
from lmcache_kit.builtin.transports.shared_memory import ShmTransport
from lmcache_kit.builtin.transports.zeromq import ZmqTransport


async def echo(frames):
    if frames and bytes(frames[0][:4]) == b"hang":
        await asyncio.Event().wait()
    return frames


async def main():
    role, address, folder, *size = sys.argv[1:]
    transport = ShmTransport(ShmOptions(directory=folder)) if address.startswith("shm") else ZmqTransport()
    if role == "listen":
        listener = await transport.listen(address, echo)
        print(listener.address, flush=True)
        await asyncio.Event().wait()
    channel = await transport.connect(address)
    data = bytes(int(size[0]))
    while True:
        await asyncio.gather(*(channel.request([data, b"small"], timeout=60) for _ in range(4)))
        print("exchanged", flush=True)


asyncio.run(main())
