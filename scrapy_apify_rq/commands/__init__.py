"""``scrapy rq ...``: each subcommand is a module of this package, listed in ``rq``.

The others are what subcommands share: ``queues`` (which queue, and what can be done with it),
``adding`` (lines to entries), ``output`` (tables, progress, questions).
"""
