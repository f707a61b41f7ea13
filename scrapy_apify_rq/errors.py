"""The exceptions of this package.

    RequestQueueError
        ConfigError    a setting is wrong, or names something that cannot be used
        CodecError     a request cannot be written as JSON, or an entry cannot be read back
        BackendError   the queue failed, and retries did not help

Every message names the setting, file or entry, and the cure if there is one.
"""


class RequestQueueError(Exception):
    """Base class of all errors that this package raises."""


class ConfigError(RequestQueueError, ValueError):
    """A setting is wrong. Raised before the crawl starts."""


class CodecError(RequestQueueError, ValueError):
    """A value cannot be written as JSON without loss, or stored data cannot be read back."""


class BackendError(RequestQueueError):
    """The queue failed for good. ``reason`` becomes the closing reason of the spider."""

    def __init__(self, message: str, reason: str = "apify_rq_unavailable") -> None:
        super().__init__(message)
        self.reason = reason
