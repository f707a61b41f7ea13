"""One word of each message for people: "1 item", "2 items"."""


def plural(number: int, noun: str, many: str = "") -> str:
    """The noun as it follows this number."""
    return noun if number == 1 else many or f"{noun}s"
