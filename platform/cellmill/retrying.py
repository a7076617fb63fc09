"""Waiting out what passes: a bucket that throttles, a connection that drops, a server that starts again.

Client libraries try a few times within seconds; a cohort run has minutes. What does not pass (no permission, no such
bucket, expired credentials) is told at once.
"""

import errno
import logging
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

__all__ = ["Patience", "passes_by_itself", "retried"]

_logger = logging.getLogger(__name__)

T = TypeVar("T")

_PASSING_ERRNOS = {
    errno.EAGAIN,
    errno.EBUSY,  # s3fs: SlowDown, ServiceUnavailable, OperationAborted
    errno.EIO,  # s3fs: any code it does not know
    getattr(errno, "EREMOTEIO", errno.EIO),  # s3fs: InternalError
    errno.ECONNABORTED,
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.EHOSTUNREACH,
    errno.ENETUNREACH,
    errno.EPIPE,
    errno.ETIMEDOUT,
    errno.ESTALE,  # a network disk whose server started again
}
_PASSING_NAMES = {
    "ClientConnectionError",
    "ClientOSError",
    "ClientPayloadError",
    "ConnectTimeoutError",
    "ConnectionClosedError",
    "EndpointConnectionError",
    "FSTimeoutError",
    "HTTPClientError",
    "IncompleteReadError",
    "ProxyConnectionError",
    "ReadTimeoutError",
    "ResponseParserError",
    "ResponseStreamingError",
    "ServerDisconnectedError",
    "ServerTimeoutError",
}
"""Of botocore, aiohttp and fsspec, which are imported only where a bucket is in use."""
_LASTING = (FileNotFoundError, PermissionError, FileExistsError, IsADirectoryError, NotADirectoryError)


@dataclass(frozen=True)
class Patience:
    """How often and how long."""

    num_tries: int = 10
    """Tries in all."""
    first_seconds: float = 0.25
    """Wait after the first."""
    longest_seconds: float = 20.0
    """No wait is longer; each is twice the one before."""

    def waits(self) -> Iterator[float]:
        """Seconds between tries, each shortened by chance so that many workers do not return together."""
        for number in range(self.num_tries - 1):
            yield min(self.longest_seconds, self.first_seconds * 2**number) * random.uniform(0.5, 1.0)


def passes_by_itself(error: BaseException) -> bool:
    """Whether the same call may well succeed later."""
    if isinstance(error, _LASTING):
        return False
    if isinstance(error, TimeoutError | ConnectionError):
        return True
    if isinstance(error, OSError) and error.errno in _PASSING_ERRNOS:
        return True
    return any(kind.__name__ in _PASSING_NAMES for kind in type(error).__mro__)


def retried(
    action: Callable[[], T],
    *,
    patience: Patience | None = None,
    passes: Callable[[BaseException], bool] = passes_by_itself,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """What `action` returns, tried again while what it raises passes by itself.

    Raises:
        Exception: the last one, or the first that does not pass.
    """
    for wait in (patience or Patience()).waits():
        try:
            return action()
        except Exception as error:
            if not passes(error):
                raise
            # The text of an error may hold a signed URL; its kind says enough here.
            _logger.warning("Storage answered with %s; trying again in %.1f s.", type(error).__name__, wait)
            sleep(wait)
    return action()
