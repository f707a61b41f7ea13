"""What the server refuses, as an exception. As in ``application``, "Choice:" marks our choices."""

from __future__ import annotations


class ApiError(Exception):
    """An error answer."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.type = kind


def invalid(message: str) -> ApiError:
    # Choice: most types of a 400 are unknown. Clients go by the status.
    return ApiError(400, "invalid-value", f"Invalid value provided: {message}")


def not_found(what: str) -> ApiError:
    return ApiError(404, "record-not-found", f"{what} was not found")
