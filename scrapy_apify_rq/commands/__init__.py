"""``scrapy rq ...``. Each subcommand is a module in this package; ``rq`` lists them.

The other modules hold what the subcommands share: ``queues`` (finding and opening a queue),
``adding`` (adding the lines of a file), ``output`` (tables, progress bars, questions) and
``jobdir`` (reading a JOBDIR).
"""
