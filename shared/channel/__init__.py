"""Both ends of a request's log and channel.

    worker    LogWriter  --append.lua, finish.lua-->  log (stream: the record) + channel (pub/sub: the same bytes)
    API node  LogReader  <--channel, and the log where the channel leaves a gap--  one connection for all requests

The log decides, the channel is only faster: a reader may lose any channel message and still deliver every chunk once
and in order.
"""

from shared.channel.log import read_log, read_progress
from shared.channel.node_beat import NodeBeat
from shared.channel.reader import LogReader, open_log_reader
from shared.channel.subscription import Push, Subscription
from shared.channel.writer import AppendVerdict, Fence, FinishVerdict, LogWriter

__all__ = [
    "AppendVerdict",
    "Fence",
    "FinishVerdict",
    "LogReader",
    "LogWriter",
    "NodeBeat",
    "Push",
    "Subscription",
    "open_log_reader",
    "read_log",
    "read_progress",
]
