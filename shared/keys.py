"""Every Redis name, made here and nowhere else.

Names of one model share the hash tag `{model}`: its queue, logs, channels and settlement queue live on one shard.
A job id is `{model}:request_id`; the queue keeps arq's own prefixes.

| name | type | writer | readers | lifetime |
|---|---|---|---|---|
| queue | zset: job id -> start tag (fair queueing) | the scripts | workers, health | while it has members |
| fair | hash: `virtual` and account -> finish tag | enqueue, claim | enqueue | with the queue's backlog, 1 h |
| job | string: sealed arq job | enqueue | claim | until FINISH, else deadline + 1 h |
| state | hash: status, attempt, owner, … | all scripts | scripts, janitor | deadline + 1 h; 15 min after FINISH |
| log | stream: `seq-0` -> chunk, no gaps | append, finish, cancel | API nodes, successor workers | as state |
| channel | pub/sub | append, finish, cancel | API nodes | - |
| suspects | zset: job id -> first queued, ms | reap, release | claim, health | while it has members |
| waiting | zset: queued job id -> patience's end, ms | enqueue, cancel, claim, reap | reap | while it has members |
| leases | zset: job id -> lease end, ms | claim, beat, finish, reap | reap | while it has members |
| wake | list of at most one token | enqueue, release, reap | idle workers | while it has members |
| settlement | stream + group: sealed Finish | finish, cancel | settlement workers | until acknowledged |
| dead_letters | stream: what could not be settled | settlement | operators | kept; trimmed to 10,000 |
| tombstone | string | cancel of an unknown id, janitor | enqueue, claim | 2 h |
| revoked | string | key revocation | claim | 24 h |
| commands | pub/sub | cancel | one worker | - |
| node | string | API node, each 2 s | workers | 8 s |
| presence | string: msgpack | worker, each beat | API, janitor | 3 beats |
| workers | zset: worker -> last beat, ms | worker | API, janitor | members pruned at 60 s |
| load_times | hash: model -> seconds | worker, each beat | API | 30 days after the last beat |
| catalogue | string: msgpack | janitor, cli | workers | none (replaced) |
| janitor queue | zset: cron ticks of arq | janitor | janitor | seconds |
| demand | string | health poll | workers | 10 s |
| slots | zset: request id -> lease end, ms | API | API | 60 s after the last use |
| minute_requests | string: msgpack bucket | API | API | until it has drained |
| minute_tokens | string: msgpack bucket | API, settlement | the same | until it has drained |
| limits_call | string: msgpack last call and its answers | API, settlement | the same | 60 s |
| throttle | string: tries in this window | API | API | the window |
"""

from typing import Final

LANES: Final = ("interactive", "batch")
DEAD_LETTERS_OF_ALL: Final = "dead-letters:{*}"  # for SCAN
SUSPECTS: Final = "suspects"  # third name of `queue`: jobs whose worker died, claimed before both lanes

CATALOGUE: Final = "inferbase:catalogue"
WORKERS: Final = "inferbase:workers"
LOAD_TIMES: Final = "inferbase:load-times"
SETTLEMENT_GROUP: Final = "settlement"
JANITOR_QUEUE: Final = "arq:queue:janitor"


def tag(model: str) -> str:
    """Return the model as a hash tag."""
    return "{" + model + "}"


def job_id(model: str, request_id: str) -> str:
    """Return arq's job id of a request."""
    return "{" + model + "}:" + request_id


def queue(model: str, lane: str) -> str:
    """Return the waiting jobs of one lane."""
    return f"arq:queue:{{{model}}}:{lane}"


def job(model: str, request_id: str) -> str:
    """Return the sealed job of a request."""
    return f"arq:job:{{{model}}}:{request_id}"


def waiting(model: str) -> str:
    """Return the queued jobs of a model by the end of their patience."""
    return f"waiting:{{{model}}}"


def leases(model: str) -> str:
    """Return the claimed jobs of a model by the end of their lease."""
    return f"arq:in-progress:{{{model}}}"


def fair(model: str, lane: str) -> str:
    """Return the fair-queueing tags of one lane."""
    return f"fair:{{{model}}}:{lane}"


def state(model: str, request_id: str) -> str:
    """Return the state of a request."""
    return f"state:{{{model}}}:{request_id}"


def log(model: str, request_id: str) -> str:
    """Return the log of a request: the record of its chunks."""
    return f"log:{{{model}}}:{request_id}"


def channel(model: str, request_id: str) -> str:
    """Return the channel of a request: the fast path beside the log."""
    return f"channel:{{{model}}}:{request_id}"


def wake(model: str) -> str:
    """Return the list whose single token wakes one idle worker."""
    return f"wake:{{{model}}}"


def settlement(model: str) -> str:
    """Return the settlement queue of a model."""
    return f"settlement:{{{model}}}"


def dead_letters(model: str) -> str:
    """Return where records go that cannot be settled."""
    return f"dead-letters:{{{model}}}"


def model_of_dead_letters(name: bytes) -> str:
    """Return the model of a name that DEAD_LETTERS_OF_ALL matches."""
    return name.decode().removeprefix("dead-letters:{").removesuffix("}")


def tombstone(model: str, request_id: str) -> str:
    """Return the mark that a request is dead before its job arrived."""
    return f"tombstone:{{{model}}}:{request_id}"


def revoked(model: str, key_id: str) -> str:
    """Return the mark that a key's queued jobs of this model must not run."""
    return f"revoked:{{{model}}}:{key_id}"


def commands(owner: str) -> str:
    """Return the channel on which one worker is told to cancel."""
    return f"commands:{owner}"


def node(node_id: str) -> str:
    """Return the sign of life of an API node."""
    return f"node:{node_id}"


def presence(owner: str) -> str:
    """Return what a worker says of itself."""
    return f"presence:{owner}"


def demand(model: str) -> str:
    """Return the mark that somebody asked after a cold model."""
    return f"demand:{{{model}}}"


def slots(holder: str) -> str:
    """Return the running requests of a key or an account."""
    return f"slots:{holder}"


def minute_requests(holder: str) -> str:
    """Return how many requests a key or an account made, as a bucket that drains."""
    return f"minute-requests:{holder}"


def minute_tokens(holder: str) -> str:
    """Return how many tokens a key or an account took, as a bucket that drains."""
    return f"minute-tokens:{holder}"


def limits_call(owner: str) -> str:
    """Return the last call of one process that counted against limits: it may come again."""
    return f"limits-call:{owner}"


def throttle(what: str, who: str) -> str:
    """Return the counter of one caller's tries to do `what`."""
    return f"throttle:{what}:{who}"
