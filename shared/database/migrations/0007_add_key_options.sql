-- What a key may do beside existing: scopes, models, a budget; and requests and tokens per minute of a whole account.

ALTER TABLE accounts
    ADD COLUMN rpm INTEGER NOT NULL DEFAULT 0 CHECK (rpm >= 0),
    ADD COLUMN tpm INTEGER NOT NULL DEFAULT 0 CHECK (tpm >= 0),
    ADD COLUMN has_budgets BOOLEAN NOT NULL DEFAULT FALSE;

ALTER TABLE api_keys
    ADD COLUMN scopes TEXT[] NOT NULL DEFAULT '{completions,keys,credits}'
        CHECK (scopes <@ '{completions,keys,credits}' AND scopes <> '{}'),
    ADD COLUMN allowed_models TEXT[] NOT NULL DEFAULT '{}';  -- none: all

-- What a key may spend in its life; no row: as much as its account. `allotted` went to keys that this one made, so that
-- a key and all its offspring together never spend more than its budget. Beside api_keys, since these rows change with
-- every batch, and in an order of locks (account first) that nobody who touches api_keys keeps.
-- accounts.has_budgets says whether an account has rows here: who reserves and settles holds that row anyway, so keys
-- without a budget cost them nothing.
CREATE TABLE key_budgets (
    budget BIGINT NOT NULL CHECK (budget > 0),
    held BIGINT NOT NULL DEFAULT 0 CHECK (held >= 0),
    spent BIGINT NOT NULL DEFAULT 0 CHECK (spent >= 0),
    allotted BIGINT NOT NULL DEFAULT 0 CHECK (allotted >= 0),
    key_id TEXT COLLATE "C" PRIMARY KEY REFERENCES api_keys (id),
    parent_id TEXT COLLATE "C" REFERENCES key_budgets (key_id),
    CONSTRAINT key_budgets_never_exceeded CHECK (held + spent + allotted <= budget)
) WITH (fillfactor = 20);

CREATE TRIGGER key_budgets_never_deleted BEFORE DELETE OR TRUNCATE ON key_budgets
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
