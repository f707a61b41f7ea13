"""What Scrapy calls: the scheduler, its two middlewares, and what belongs to one crawl.

The way of a request, for readers:

1. ``scheduler.enqueue_request`` asks ``duplicates`` for its unique key, and ``entries.converter``
   for its entry.
2. ``frontier.frontier`` puts the entry into the ``outbox``, which sends it to the backend.
3. Once it is confirmed it waits in the ``window``, until ``scheduler.next_request`` hands it out.
4. From then on it is ``inflight``. The ``middlewares`` report how its download and callback end.
5. When Scrapy has finished with it, ``inflight`` gives the verdict, and the outbox sends the ack,
   a PUT, or puts the entry back into the queue.

``lifecycle`` makes, opens and closes all of these, and passes on what happens to the queue.
"""
