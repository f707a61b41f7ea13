"""``scrapy rq ...``: each subcommand is a module of this package, listed in ``rq``."""
