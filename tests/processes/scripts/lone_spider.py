"""A spider in a single file."""

from tests.support.spiders import Links


class Lone(Links):
    name = "lone"
