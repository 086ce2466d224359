"""Pictures of the web, without becoming a way into the network of the server.

A name may lead anywhere, and elsewhere a moment later. So it is resolved once, every address is checked, the
connection goes to a checked address and not to the name, and the address of its other end is checked again. The same
holds for each redirect. Proxies of the environment are not used.
"""

from __future__ import annotations

import asyncio
import dataclasses
import ipaddress
import socket
import ssl
import urllib.parse
from collections.abc import Iterable
from typing import Any

import httpcore

from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.serving.addresses import PORTS, WebAddress, parse_web

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

MAX_REDIRECTS = 3
SECONDS = 15.0  # for a picture, with its redirects
_AT_ONCE = 8  # pictures that are fetched at the same time
_REDIRECTS = (301, 302, 303, 307, 308)
_HEADERS = ((b"Accept", b"image/*"), (b"Accept-Encoding", b"identity"), (b"User-Agent", b"qwenvl_jax"))

# Addresses that are public by their number, and lead to what belongs to a machine or its cloud alone.
_INTERNAL = tuple(
    ipaddress.ip_network(network)
    for network in (
        "168.63.129.16/32",  # Azure's wire server
        "192.88.99.0/24",  # relays of 6to4
        "64:ff9b:1::/48",  # local translation to IPv4
        "fec0::/10",  # the former site-local addresses
    )
)
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def is_public(address: IPAddress) -> bool:
    """Whether an address belongs to the public internet, also that of IPv4 inside one of IPv6."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is None and int(address) >> 32 == 0:  # the former form of an address of IPv4
            inner = ipaddress.IPv4Address(int(address))
        if inner is not None:
            return is_public(inner)
        if address.teredo is not None:
            return False
    special = address.is_multicast or address.is_reserved or address.is_unspecified or address.is_loopback
    known = any(address in network for network in _INTERNAL if network.version == address.version)
    return address.is_global and not special and not address.is_link_local and not known


def _ip_address(text: str) -> IPAddress:
    """The address of a socket, whose zone (`fe80::1%eth0`) is left out."""
    return ipaddress.ip_address(text.partition("%")[0])


@dataclasses.dataclass(frozen=True)
class FetchSettings:
    """What may be fetched.

    Attributes:
      max_bytes: of a picture.
      seconds: for a picture.
      also: networks that may be reached although they are not public, such as that of a picture store.
      public: whether the public internet may be reached.
    """

    max_bytes: int
    seconds: float = SECONDS
    also: tuple[IPNetwork, ...] = ()
    public: bool = True

    def allows(self, address: IPAddress) -> bool:
        """Whether a connection to that address may be made."""
        return (self.public and is_public(address)) or self.names(address)

    def names(self, address: IPAddress) -> bool:
        """Whether the address is in one of the networks that were named."""
        return any(address in network for network in self.also if network.version == address.version)


class _CheckedConnections(httpcore.AsyncNetworkBackend):
    """Connects to checked addresses only."""

    def __init__(self, settings: FetchSettings):
        self._settings = settings
        self._backend = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """As of httpcore. Raises UserError if the name leads to an address that may not be reached."""
        kind = "an internal address" if self._settings.public else "an address outside the networks that were named"
        refused = UserError(f"{host[:100]} leads to {kind}, from which nothing is fetched; send a data URL")
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            raise UserError(f"the name {host[:100]} is not known; correct the address") from None
        numbers = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        if not numbers or not all(self._settings.allows(_ip_address(number)) for number in numbers):
            raise refused
        failure: Exception = httpcore.ConnectError("no address")
        for number in numbers:
            try:
                stream = await self._backend.connect_tcp(number, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
                continue
            here, there = (_ip_address(stream.get_extra_info(name)[0]) for name in ("client_addr", "server_addr"))
            if not self._settings.allows(there) or (here == there and not self._settings.names(there)):
                await stream.aclose()
                raise refused
            return stream
        raise failure

    async def sleep(self, seconds: float) -> None:
        """As of httpcore."""
        await asyncio.sleep(seconds)


class WebPictures:
    """Fetches pictures. For use in one event loop."""

    def __init__(self, settings: FetchSettings):
        self._settings = settings
        self._tls = ssl.create_default_context()
        self._turn = asyncio.Semaphore(_AT_ONCE)

    async def fetch(self, address: WebAddress) -> bytes:
        """The bytes of a picture.

        Raises:
          UserError: if the address leads inside, answers with an error, too slowly, with too many bytes or redirects.
        """
        name = f"the picture of {address.host[:100]}"
        try:
            async with self._turn, asyncio.timeout(self._settings.seconds):
                for _ in range(MAX_REDIRECTS + 1):
                    content = await self._get(address)
                    if isinstance(content, bytes):
                        return content
                    address = content
        except TimeoutError:
            raise UserError(f"{name} takes longer than {self._settings.seconds:g} seconds; send a data URL") from None
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, OSError) as error:
            raise UserError(f"{name} cannot be fetched ({type(error).__name__}); send a data URL") from None
        raise UserError(f"{name} is redirected more than {MAX_REDIRECTS} times; give its last address")

    async def _get(self, address: WebAddress) -> bytes | WebAddress:
        """The picture, or the address to which it has moved. Each connection is used once."""
        connections = _CheckedConnections(self._settings)
        async with (
            httpcore.AsyncConnectionPool(ssl_context=self._tls, network_backend=connections, retries=0) as pool,
            pool.stream("GET", str(address), headers=[(b"Host", _host(address)), *_HEADERS]) as response,
        ):
            headers = {name.lower(): value for name, value in response.headers}
            if response.status in _REDIRECTS:
                moved = headers.get(b"location", b"").decode("ascii", "replace")
                return parse_web(urllib.parse.urljoin(str(address), moved))
            if response.status != 200:
                raise UserError(f"{address.host[:100]} answers with the status {response.status}; correct the address")
            if headers.get(b"content-encoding", b"identity").lower() != b"identity":
                raise UserError(f"{address.host[:100]} sends a compressed picture, which is not read; send a data URL")
            largest = self._settings.max_bytes
            length = headers.get(b"content-length", b"0")
            picture = bytearray()
            if not length.isdigit() or int(length) <= largest:
                async for piece in response.aiter_stream():
                    picture += piece
                    if len(picture) > largest:
                        break
                else:
                    return bytes(picture)
            raise UserError(f"the picture of {address.host[:100]} has more than {largest:,} bytes; send a smaller one")


def _host(address: WebAddress) -> bytes:
    host = f"[{address.host}]" if ":" in address.host else address.host
    return (host if address.port == PORTS[address.scheme] else f"{host}:{address.port}").encode()
