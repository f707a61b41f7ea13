"""What waits in memory, in which order, and when is the crawl over?

    outbox      adds and updates that the backend has not confirmed
    window      what can be handed out, in its order
    waiting     retries whose back-off is not over
    slots       whose turn it is among the hosts
    supply      how entries come from the backend: ``single`` or ``leases``
    idle        whether the crawl is over
    frontier    what connects them, and what the scheduler calls

Invariants that the frontier holds (numbers as in the tests):

 1. The methods that the scheduler calls synchronously touch memory only.
 2. Adds before acks: an ack is sent only after every add made before it is confirmed. A crash can
    repeat a page; it cannot lose its links.
 4. "Nothing pending" requires an empty outbox, an empty window, nothing in flight, and the
    backend's answer "nothing" to a question asked after our last write was confirmed. The question
    is repeated only where others' writes, or entries that we know of, may not show yet. A worker
    of a shared queue stays as long as others have work.
 5. The same id is never handed out twice at the same time. In shared access nothing is handed out
    without a lease, and a lease that lapsed in the window is dropped.
 6. A failure that retries cannot cure, or an exception in a task, closes the spider with a reason.
    Unsaved work is counted and never reported as finished.
 7. ``close()`` flushes, releases what it holds, and leaves unfinished entries pending. Every wait
    in it is bounded, and no task outlives it.
 9. Memory is bounded in entries and in bytes: the window evicts, the outbox holds the spider back
    (``room``), claims ask for no more than fits, and nothing is handed out while too many acks
    wait. One entry always fits, however large it is.
10. An entry added by this process keeps its live request while it is in the window, and
    ``Frontier.next`` returns the visit with that very object.

What grows with the crawl, with bytes per entry:

    ids seen               82   ``Local.seen``
    start counters        110   for each kind of start request that is repeatable (``Keys``)
    ids left               82   entries that only another version of the project can read (backend)
    requests in memory    700   and more, with the request's own data: those that cannot be written
                                as JSON, while they wait (``Window``)
"""
