"""One request to someone else's server, with nothing left to chance.

https only (http on loopback), no redirects, no proxies from the environment, no private addresses,
a deadline for the whole exchange rather than for each read, and no more of the reply than its
status. The address that is checked is the address that is connected to, so a name cannot change its
mind in between.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import socket
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

import httpx

from wvmonitor._version import __version__
from wvmonitor.errors import SettingsError
from wvmonitor.journal.outbox import DeliveryError

RETRYABLE = frozenset({408, 425, 429})

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True)
class SendPolicy:
    """Where requests may go.

    Attributes:
        allow_http: whether plain http may leave this machine.
        allow_private: host names, addresses or networks ("10.0.0.0/8") that may be private.
    """

    allow_http: bool = False
    allow_private: tuple[str, ...] = ()


def redacted(url: str) -> str:
    """The part of a URL that may be shown: paths, queries and user names can hold secrets."""
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "(a malformed URL)"
    return f"{parts.scheme}://{parts.hostname or '?'}{port}/…"


def check_url(url: str, policy: SendPolicy) -> SplitResult:
    """See that `url` may be sent to, as far as can be told without the network.

    Raises:
        SettingsError: it is malformed, holds a password, or would leave this machine in the clear.
    """
    shown = redacted(url)
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        parts = SplitResult("", "", "", "", "")
    clean = url.isprintable() and " " not in url
    if not (parts.scheme in ("http", "https") and parts.hostname and clean):
        raise SettingsError(f"a notifier's url must look like https://host/path, got {shown}")
    if parts.username is not None or parts.password is not None:
        raise SettingsError(
            f"the url {shown} holds a user name or password: give it as a token or secret instead"
        )
    if parts.scheme == "http" and not policy.allow_http and not is_loopback(parts.hostname):
        raise SettingsError(
            f"the url {shown} would send alerts unencrypted: use https, or set allow_http"
        )
    with contextlib.suppress(ValueError):  # a name: looked up, and checked, when something is sent
        _check_address(ipaddress.ip_address(parts.hostname), parts.hostname, policy)
    return parts


def request(
    method: str,
    url: str,
    body: bytes,
    headers: Mapping[str, str],
    policy: SendPolicy,
    timeout: float,
) -> None:
    """Send one request; returns only if the server took it (2xx).

    Raises:
        DeliveryError: it did not: retryable on timeouts, broken connections, 408, 425, 429 and
            5xx; final on every other answer, redirects included, and where the address must not be
            sent to.
    """
    shown = redacted(url)
    sent = {"Host": urlsplit(url).netloc, "User-Agent": f"wvmonitor/{__version__}", **headers}
    try:
        addresses = _addresses(check_url(url, policy), policy)
        # A transport, and no client: that would log the URL with all that is secret in it.
        status = asyncio.run(
            asyncio.wait_for(_exchange(method, url, addresses, body, sent), timeout)
        )
    except SettingsError as error:
        raise DeliveryError(str(error), retryable=False) from None
    except (TimeoutError, httpx.TimeoutException):
        raise DeliveryError(
            f"{shown}: no complete answer within {timeout:g} s", retryable=True
        ) from None
    except httpx.LocalProtocolError:
        raise DeliveryError(f"{shown}: {_unsendable(sent)}", retryable=False) from None
    except (OSError, httpx.HTTPError) as error:
        raise DeliveryError(f"{shown}: {_cause(error)}", retryable=True) from None
    if not 200 <= status < 300:
        again = status >= 500 or status in RETRYABLE
        raise DeliveryError(f"{shown} answered {status}", retryable=again)


async def _exchange(
    method: str, url: str, addresses: list[tuple[str, int]], body: bytes, headers: Mapping[str, str]
) -> int:
    """The status of the reply of the first address that can be connected to."""
    named = httpx.URL(url)
    async with httpx.AsyncHTTPTransport(
        verify=ssl.create_default_context(), trust_env=False
    ) as transport:
        for number, (address, port) in enumerate(addresses, 1):
            request = httpx.Request(
                method,
                named.copy_with(host=address, port=port),
                headers=[(name.encode(), value.encode()) for name, value in headers.items()],
                content=body,
                extensions={"sni_hostname": named.host},  # whose certificate it must show
            )
            try:
                reply = await transport.handle_async_request(request)
            except httpx.ConnectError:
                if number == len(addresses):
                    raise
            else:
                await reply.aclose()
                return reply.status_code
    raise OSError("it has no address")


def _addresses(url: SplitResult, policy: SendPolicy) -> list[tuple[str, int]]:
    """The host's addresses and ports; every one must be allowed."""
    host = url.hostname or ""
    port = url.port or (443 if url.scheme == "https" else 80)
    places = [place for *_, place in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    for place in places:
        _check_address(ipaddress.ip_address(str(place[0]).split("%")[0]), host, policy)
    return [(str(place[0]), int(place[1])) for place in places]


def _check_address(address: _Address, host: str, policy: SendPolicy) -> None:
    """Refuse addresses that only mean something inside a network, unless they are allowed."""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if address.is_loopback and is_loopback(host):
        return
    if address.is_global and not address.is_multicast:
        return
    for allowed in policy.allow_private:
        if allowed == host:
            return
        with contextlib.suppress(ValueError):  # another host's name
            if address in ipaddress.ip_network(allowed, strict=False):
                return
    raise SettingsError(
        f"{host!r} is the private address {address}: put the host or its network into "
        "allow_private if alerts may go there"
    )


def is_loopback(host: str) -> bool:
    """Whether the host is this machine by its own words, not by what some name server says."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _unsendable(headers: Mapping[str, str]) -> str:
    """Which header cannot be sent; its value may be a secret."""
    odd = [name for name, value in headers.items() if not value.isprintable()]
    return f"the header {', '.join(odd) or 'given'} cannot be sent (a line break in a token?)"


def _cause(error: Exception) -> str:
    """An error in words that hold nothing of the request."""
    for one in _chain(error):
        if isinstance(one, ssl.SSLCertVerificationError):
            return f"its certificate is not trusted ({one.verify_message})"
    for one in _chain(error):
        if isinstance(one, OSError) and one.strerror:  # asyncio's own words for it say less
            return os.strerror(one.errno) if one.errno and one.errno > 0 else one.strerror
    return type(error).__name__


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and what it came from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
