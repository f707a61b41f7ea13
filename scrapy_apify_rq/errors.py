"""The exceptions of this package.

    RequestQueueError
        ConfigError    a setting is wrong, or names something that cannot be used
        CodecError     a request cannot be written as JSON, or an entry cannot be read back
            MissingError   an entry needs a part of the project that is not there today
        BackendError   the queue failed, and retries did not help
            Unavailable    the API cannot be reached, or fails at everything

Every message names the setting, file or entry, and the cure if there is one.
"""


class RequestQueueError(Exception):
    """Base class of all errors that this package raises."""


class ConfigError(RequestQueueError, ValueError):
    """A setting is wrong. Raised before the crawl starts."""


class CodecError(RequestQueueError, ValueError):
    """A value cannot be written as JSON without loss, or stored data cannot be read back."""


class MissingError(CodecError):
    """Stored data needs a callback, a class or the like that the project lacks today.

    Another version of the project may read it, so it is not thrown away. ``name`` is what is
    missing, for people.
    """

    def __init__(self, name: str, cure: str) -> None:
        super().__init__(f"{name}: {cure}")
        self.name = name


class BackendError(RequestQueueError):
    """The queue failed for good. ``reason`` becomes the closing reason of the spider."""

    def __init__(self, message: str, reason: str = "apify_rq_unavailable") -> None:
        super().__init__(message)
        self.reason = reason


class Unavailable(BackendError):
    """The API has failed for longer than we wait. ``problem`` says no more than that, for those who
    are not a crawl.
    """

    def __init__(self, problem: str, cure: str) -> None:
        super().__init__(f"{problem}. {cure}")
        self.problem = problem
