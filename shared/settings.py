"""All settings, and the only reader of the environment.

A field `lease_seconds` of any section below is read from `INFERBASE_LEASE_SECONDS`; the two store addresses also from
`DATABASE_URL` and `REDIS_URL`. Sections are per concern; every bound of the product stands here with its unit.
"""

import os
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from shared.errors import SettingsInvalid

PREFIX: Final = "INFERBASE_"
SECRET_BYTES_LEAST: Final = 32

_STORE_URLS: Final = ("DATABASE_URL", "REDIS_URL")


class StoreSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where Postgres and Redis are, and how long to wait for them."""

    database_url: str = ""  # postgresql://…; required by all but workers
    redis_url: str = "redis://127.0.0.1:6379/0"  # redis://…, with its password
    database_connections_most: int = 8  # per process
    redis_connections_most: int = 64  # per process
    store_timeout_seconds: float = 5.0  # to connect; a statement gets twice that


class SecretSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Secrets; never logged. Each at least 32 bytes."""

    key_pepper: str = ""  # of the digests of API keys: another one makes every key unknown
    wire_key: str = ""  # seals jobs and settlement records
    wire_key_previous: str = ""  # still accepted while keys are rotated
    jwt_key: str = ""  # signs session cookies; empty: nobody can log in
    stripe_webhook_secret: str = ""  # whsec_… of the deposit webhook; empty: there is none


class ApiSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The HTTP edge. 0 = no limit for the bounds of keys, accounts and nodes."""

    host: str = "127.0.0.1"  # address to listen on
    port: int = 8000  # port to listen on
    node_id: str = ""  # name of this node; each start adds its own random half
    body_bytes_most: int = 2 * 1024 * 1024  # of a completion request
    small_body_bytes_most: int = 16 * 1024  # of every other request
    body_seconds_most: float = 30.0  # for a body to arrive
    ping_seconds: float = 10.0  # between two comments on a silent stream
    status_hold_seconds: float = 10.0  # a stream's status waits so long for the first chunk
    slow_reader_seconds: float = 30.0  # a client that takes nothing for so long is cut
    key_rpm: int = 60  # requests per minute, of a key that names no own bound
    key_concurrency: int = 16  # requests at once, of a key that names no own bound
    account_concurrency: int = 32  # requests at once, of an account that names no own bound
    node_concurrency: int = 2000  # requests at once on this node
    stream_patience_seconds: float = 60.0  # a streamed request waits so long for a worker
    fold_patience_seconds: float = 50.0  # one that is not streamed: below the 60 s of common proxies
    patience_seconds_most: float = 600.0  # what the header Inferbase-Wait may ask for
    batch_patience_seconds_most: float = 86_400.0  # the same for requests of the batch lane
    auth_cache_seconds: float = 4.0  # what is known of a key is believed so long: a revocation holds within 5 s
    key_check_seconds: float = 4.0  # between two checks of the keys of running requests
    catalogue_cache_seconds: float = 2.0  # a new model is known after so long
    shutdown_seconds: float = 30.0  # running streams may finish for so long


class SessionSettings(msgspec.Struct, frozen=True, kw_only=True):
    """People who log in: their sessions, and what guards them. 0 = no limit for the rates."""

    registration_open: bool = True  # anybody may register; a new account has no credits
    public_origin: str = ""  # such as https://api.example.com; empty: taken from each request
    trusted_proxies: str = ""  # comma-separated addresses or networks whose X-Forwarded-… headers are believed
    session_seconds: float = 3600.0  # a session that is not refreshed ends after this
    session_seconds_most: float = 7 * 24 * 3600.0  # and a refreshed one after this
    login_address_rpm: int = 30  # logins, and registrations, that one address may try in a minute
    login_email_rpm: int = 10  # logins that may be tried in a minute with one e-mail address
    password_threads: int = 2  # that hash passwords
    password_queue_most: int = 32  # passwords that wait for them


class QueueSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Leases, deadlines and bounds of the queue."""

    lease_seconds: float = 6.0  # a silent worker loses its requests after this
    beat_seconds: float = 2.0  # between two renewals of a worker's leases
    poll_seconds: float = 0.5  # an idle worker looks so often without being woken
    reap_seconds: float = 0.5  # between two looks for dead workers' requests
    claim_most: int = 4  # jobs in one claim; more where a quarter of the free slots is more
    queue_most: int = 10_000  # jobs that wait, per model and lane
    run_seconds_most: float = 900.0  # an answer ends as `length` after this
    first_token_seconds: float = 120.0  # from the claim; then the request fails, free of charge
    next_token_seconds: float = 30.0  # between two tokens; likewise
    deadline_grace_seconds: float = 30.0  # after patience and run time, before the janitor closes a request
    state_keep_seconds: float = 3600.0  # state and log outlive the deadline by this
    finished_keep_seconds: float = 900.0  # state and log of a finished request are kept so long
    node_beat_seconds: float = 2.0  # between two signs of life of an API node
    node_lease_seconds: float = 8.0  # how long such a sign counts
    no_reader_seconds: float = 10.0  # a request without a living reader is cancelled after this
    enqueue_retry_seconds: float = 2.0  # while Redis does not answer; then 503
    enqueue_most: int = 64  # jobs in one script call
    reap_most: int = 64  # jobs in one script call
    batch_reserve_slots: int = -1  # of each loaded model that batch jobs leave free; -1: an eighth, at least 1
    aged_seconds: float = 600.0  # a batch job that waited so long may have a reserved slot; one of nine jobs
    tombstone_seconds: float = 7200.0  # how long a request cancelled before its job arrived stays refused
    dead_letters_most: int = 10_000  # kept per model; the oldest go first
    reader_chunks_most: int = 4096  # waiting for one slow reader; then it reads the log again
    writer_bytes_most: int = 64 * 1024 * 1024  # of running requests' chunks, kept until their end
    write_retry_seconds: float = 30.0  # longer than a lease: whoever gives up has lost its fence


class WorkerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """One inference worker."""

    engine: str = "llamacpp"  # llamacpp, simulator or tensorrt
    models: str = ""  # comma-separated ids; empty: every model of the catalogue with this engine
    model_path: str = ""  # of a local GGUF for llamacpp, of a checkpoint folder for tensorrt
    slots: int = 0  # 0: the engine's own default
    models_most: int = 0  # models loaded at once, more are loaded on demand; 0: all of them
    idle_unload_seconds: float = 0.0  # a model without work for so long is closed; 0: never
    model_turn_seconds: float = 10.0  # a model keeps its place so long while jobs of another one wait
    drain_seconds: float = 25.0  # running requests may finish for so long at SIGTERM; the rest is handed over
    step_silence_seconds: float = 30.0  # an engine with work and without a step for so long is dead


class AdmissionSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Reservations, releases and witnesses of one API node."""

    reserve_most: int = 256  # reservations in one transaction
    reserve_gather_ms: int = 5  # between two transactions, unless many wait: a commit costs more than many rows
    reserve_retry_seconds: float = 2.0  # after that a client is told that the database is down
    outbox_most: int = 50_000  # releases, and witnesses, that wait for the database
    outbox_batch_most: int = 512  # in one statement
    outbox_retry_seconds: float = 1.0  # while the database is down
    witness_delay_seconds: float = 0.5  # gathers; most requests are settled by then
    flush_seconds: float = 10.0  # at shutdown


class SettlementSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Settlement and janitor."""

    settle_most: int = 512  # records in one transaction
    settle_block_ms: int = 500  # an idle worker waits so long in one read
    settle_idle_ms: int = 15_000  # an unacknowledged record is taken over after this
    settle_gather_ms: int = 20  # between two transactions: an idle worker settles at once
    settle_gather_busy_ms: int = 100  # the same after a batch of many records; a full batch is followed at once
    settle_tries_most: int = 5  # deliveries of one record; then it is set aside
    settle_retry_seconds: float = 0.5  # while a store is down
    settle_drain_seconds: float = 10.0  # for the rest of the queue, at SIGTERM
    catalogue_seconds: float = 1.0  # between two looks at the models
    sweep_seconds: float = 5.0  # between two sweeps of the janitor
    stateless_seconds: float = 30.0  # open that long without state in Redis: closed
    sweep_page_most: int = 500  # requests looked at in one step
    backlog_patience_seconds: float = 2.0  # for records older than the sweep to be settled; else it closes nothing


class MonitoringSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What a process tells of itself: metrics and health on a port of its own, traces to a collector."""

    metrics_host: str = "127.0.0.1"  # address of /metrics, /livez and /readyz
    metrics_port: int = 0  # their port, 0: none; `up` gives each process one, from this one upwards where it is set
    otel_endpoint: str = ""  # OTLP over HTTP, such as http://collector:4318; empty: no traces
    otel_sample_ratio: float = 1.0  # of the requests, [0, 1]; decided by API nodes
    unserved_seconds: float = 10.0  # a model that no worker lists for so long is warned of


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything, by concern."""

    stores: StoreSettings = StoreSettings()
    secrets: SecretSettings = SecretSettings()
    api: ApiSettings = ApiSettings()
    sessions: SessionSettings = SessionSettings()
    queue: QueueSettings = QueueSettings()
    worker: WorkerSettings = WorkerSettings()
    admission: AdmissionSettings = AdmissionSettings()
    settlement: SettlementSettings = SettlementSettings()
    monitoring: MonitoringSettings = MonitoringSettings()
    log_level: str = "info"  # debug, info, warning or error
    log_json: bool = True  # false: readable text
    crash_point: str = ""  # for tests: die at this named point


def load_settings(environment: Mapping[str, str] | None = None) -> Settings:
    """Return the settings of `environment` (default: this process's); SettingsInvalid names the bad variable."""
    source = dict(os.environ if environment is None else environment)
    for bare in _STORE_URLS:
        if bare in source:
            source.setdefault(PREFIX + bare, source[bare])
    values: dict[str, Any] = {}
    for field in msgspec.structs.fields(Settings):
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            values[field.name] = field.type(**_section(field.type, source))
        else:
            values |= _value(field, source)
    settings = Settings(**values)
    _check_addresses(settings.stores)
    return settings


def environment_of(settings: Settings) -> dict[str, str]:
    """Return the variables from which `load_settings` makes `settings` again; for a child process."""
    found: dict[str, str] = {}
    for name, value in msgspec.structs.asdict(settings).items():
        section = msgspec.structs.asdict(value) if isinstance(value, msgspec.Struct) else {name: value}
        found |= {PREFIX + key.upper(): str(item) for key, item in section.items()}
    return found


def given_store_urls() -> tuple[str, str]:
    """Return the addresses of Postgres and Redis that this process was given; empty where it was given none."""
    stores = [os.environ.get(PREFIX + name) or os.environ.get(name, "") for name in _STORE_URLS]
    return stores[0], stores[1]


def inherited_environment() -> dict[str, str]:
    """Return this process's environment without anything of ours: what a child gets besides its settings."""
    return {
        name: value for name, value in os.environ.items() if not name.startswith(PREFIX) and name not in _STORE_URLS
    }


def require_secrets(settings: Settings, *names: str) -> SecretSettings:
    """Return the secrets, or raise SettingsInvalid where one of `names` (default: all) is missing or under 32 bytes."""
    for name in names or ("key_pepper", "wire_key"):
        if len(getattr(settings.secrets, name).encode()) < SECRET_BYTES_LEAST:
            raise SettingsInvalid(f"{PREFIX}{name.upper()} must be set to at least {SECRET_BYTES_LEAST} bytes")
    return settings.secrets


def _check_addresses(stores: StoreSettings) -> None:
    """Refuse what no driver would understand; the address itself is not shown, since it may hold a password."""
    if stores.database_url and not stores.database_url.startswith(("postgresql://", "postgres://")):
        raise SettingsInvalid("DATABASE_URL must start with postgresql://")
    if not stores.redis_url.startswith(("redis://", "rediss://", "unix://")):
        raise SettingsInvalid("REDIS_URL must start with redis://, rediss:// or unix://")


def _section(section: type[msgspec.Struct], source: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for field in msgspec.structs.fields(section):
        values |= _value(field, source)
    return values


def _value(field: msgspec.structs.FieldInfo, source: Mapping[str, str]) -> dict[str, Any]:
    name = PREFIX + field.name.upper()
    if name not in source:
        return {}
    try:
        return {field.name: msgspec.convert(source[name], field.type, strict=False)}
    except msgspec.ValidationError as error:
        raise SettingsInvalid(f"{name}: {error}") from None
