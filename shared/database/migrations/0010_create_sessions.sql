-- People beside keys: users log in with a password and hold sessions, which their cookies name. A session spends from
-- its user's account like a key does, and like a revoked key an ended session stays, so that the requests that it made
-- can be told of. Only a hash of the password is kept, and of a cookie only its session's id, which opens nothing.

CREATE TABLE users (
    id TEXT COLLATE "C" PRIMARY KEY,
    account_id TEXT COLLATE "C" NOT NULL REFERENCES accounts (id),
    email TEXT NOT NULL UNIQUE CHECK (email <> '' AND email = lower(email)),
    password_hash TEXT NOT NULL CHECK (password_hash LIKE '$argon2id$%'),
    admin BOOLEAN NOT NULL DEFAULT FALSE,
    created_at TIMESTAMPTZ NOT NULL DEFAULT now()
);

CREATE TABLE sessions (
    id TEXT COLLATE "C" PRIMARY KEY CHECK (id LIKE 'sess\_%'),
    user_id TEXT COLLATE "C" NOT NULL REFERENCES users (id),
    account_id TEXT COLLATE "C" NOT NULL REFERENCES accounts (id),
    created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    expires_at TIMESTAMPTZ NOT NULL,  -- however often it is refreshed
    revoked_at TIMESTAMPTZ
);

-- Keys of operators, made by the command line alone.
ALTER TABLE api_keys ADD COLUMN admin BOOLEAN NOT NULL DEFAULT FALSE;

CREATE TRIGGER sessions_never_deleted BEFORE DELETE OR TRUNCATE ON sessions
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
