"""The queue between API nodes and workers: arq's job format and names, with leases, fences and fair order of our own.

    API node   QueueClient      enqueue.lua  cancel.lua            janitor  QueueClient.fence  fence.lua
    worker     LeasedWorker     claim.lua  beat.lua  release.lua   both     Reaper             reap.lua
    settlement SettlementQueue  a consumer group over every model's stream

Every decision about one request is made inside one script on Redis, by Redis' own clock. A script is idempotent by
request id and fence (attempt, owner), so an ambiguous network reply is safe to repeat.
"""
