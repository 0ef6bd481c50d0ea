"""One POST to someone else's server, with nothing left to chance.

https only (http on loopback), no redirects, no proxies from the environment, no private addresses,
a deadline for the whole exchange rather than for each read, and a bounded reply. The address that
is checked is the address that is connected to, so a name cannot change its mind in between.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from wvmonitor._version import __version__
from wvmonitor.errors import SettingsError
from wvmonitor.journal.outbox import DeliveryError

REPLY_BYTES = 65_536
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
    if parts.scheme == "http" and not policy.allow_http and not _is_loopback(parts.hostname):
        raise SettingsError(
            f"the url {shown} would send alerts unencrypted: use https, or set allow_http"
        )
    with contextlib.suppress(ValueError):  # a name: looked up, and checked, when something is sent
        _check_address(ipaddress.ip_address(parts.hostname), parts.hostname, policy)
    return parts


def post(
    url: str,
    body: bytes,
    headers: Mapping[str, str],
    policy: SendPolicy,
    timeout: float,
) -> None:
    """POST `body`; returns only if the server took it (2xx).

    Raises:
        DeliveryError: it did not: retryable on timeouts, broken connections, 408, 425, 429 and
            5xx; final on every other answer, redirects included.
        SettingsError: the address must not be sent to.
    """
    shown = redacted(url)
    start = time.monotonic()
    try:
        with _connected(check_url(url, policy), policy, timeout) as connection:
            target = urlsplit(url)
            path = (target.path or "/") + (f"?{target.query}" if target.query else "")
            agent = {"Host": target.netloc, "User-Agent": f"wvmonitor/{__version__}"}
            connection.request("POST", path, body, {**agent, **headers})
            reply = connection.getresponse()
            status = reply.status
            reply.read(REPLY_BYTES)
    except SettingsError as error:
        raise DeliveryError(str(error), retryable=False) from None
    except (OSError, http.client.HTTPException) as error:
        late = time.monotonic() - start >= timeout
        what = f"no complete answer within {timeout:g} s" if late else _cause(error)
        raise DeliveryError(f"{shown}: {what}", retryable=True) from None
    if not 200 <= status < 300:
        again = status >= 500 or status in RETRYABLE
        raise DeliveryError(f"{shown} answered {status}", retryable=again)


@contextlib.contextmanager
def _connected(
    url: SplitResult, policy: SendPolicy, timeout: float
) -> Iterator[http.client.HTTPConnection]:
    """A connection to an address that was checked, cut off when `timeout` seconds have passed."""
    host = url.hostname or ""
    port = url.port or (443 if url.scheme == "https" else 80)
    end = time.monotonic() + timeout
    raw = _dial(host, port, policy, end)
    leash = raw.dup()  # stays ours when TLS takes the socket over
    timer = threading.Timer(max(end - time.monotonic(), 0.0), _cut, (leash,))
    timer.daemon = True
    timer.start()
    connection = http.client.HTTPConnection(host, port, timeout=timeout)
    try:
        if url.scheme == "https":
            raw = ssl.create_default_context().wrap_socket(raw, server_hostname=host)
        connection.sock = raw
        yield connection
    finally:
        timer.cancel()
        raw.close()
        connection.close()
        leash.close()


def _dial(host: str, port: int, policy: SendPolicy, end: float) -> socket.socket:
    """Connect to the first of the host's addresses that answers; every one must be allowed."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    for *_, address in found:
        _check_address(ipaddress.ip_address(str(address[0]).split("%")[0]), host, policy)
    failure: OSError = OSError("it has no address")
    for family, kind, protocol, _, address in found:
        raw = socket.socket(family, kind, protocol)
        try:
            raw.settimeout(max(end - time.monotonic(), 0.01))
            raw.connect(address)
        except OSError as error:
            raw.close()
            failure = error
        else:
            return raw
    raise failure


def _check_address(address: _Address, host: str, policy: SendPolicy) -> None:
    """Refuse addresses that only mean something inside a network, unless they are allowed."""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if address.is_loopback and _is_loopback(host):
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


def _is_loopback(host: str) -> bool:
    """Whether the host is this machine by its own words, not by what some name server says."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _cut(leash: socket.socket) -> None:
    with contextlib.suppress(OSError):
        leash.shutdown(socket.SHUT_RDWR)


def _cause(error: Exception) -> str:
    """An error in words that hold nothing of the request."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({error.verify_message})"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return type(error).__name__
