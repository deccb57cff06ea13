-- Who may do what in Postgres: a role for each process, none for workers. Run it as the owner after every migration: a
-- table that is not named here is nobody's. Passwords are set by logins.sql.
-- The functions of the ledger run with their caller's rights, so a role has what the functions need that it calls.
-- Nobody can change or remove a transfer or a usage row; only the API can make accounts, keys, sessions and deposits; only
-- settlement and janitor can charge. tests/deploy/test_postgres_roles.py runs the product under these roles.

DO $$
DECLARE
    role TEXT;
BEGIN
    FOREACH role IN ARRAY ARRAY['inferbase_api', 'inferbase_settlement', 'inferbase_janitor'] LOOP
        BEGIN
            EXECUTE format('CREATE ROLE %I', role);
        EXCEPTION WHEN duplicate_object OR unique_violation THEN  -- also where two databases are prepared at once
            NULL;
        END;
        EXECUTE format('ALTER ROLE %I NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS', role);
        EXECUTE format('ALTER ROLE %I CONNECTION LIMIT 200', role);
        EXECUTE format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), role);
    END LOOP;
    EXECUTE format('REVOKE ALL ON DATABASE %I FROM PUBLIC', current_database());
END
$$;

REVOKE ALL ON SCHEMA public FROM PUBLIC;
REVOKE ALL ON ALL TABLES IN SCHEMA public FROM PUBLIC, inferbase_api, inferbase_settlement, inferbase_janitor;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA public FROM PUBLIC, inferbase_api, inferbase_settlement, inferbase_janitor;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA public FROM PUBLIC, inferbase_api, inferbase_settlement, inferbase_janitor;
GRANT USAGE ON SCHEMA public TO inferbase_api, inferbase_settlement, inferbase_janitor;

-- The API: people, keys and the catalogue; reservations, what it witnessed, and releases of what never ran, which close a
-- request at no cost through settle_many.
GRANT SELECT ON accounts, api_keys, key_budgets, users, sessions, models, requests, open_requests, usage, transfers,
    payment_events TO inferbase_api;
GRANT INSERT (id, email, rpm, tpm, concurrency, weight) ON accounts TO inferbase_api;
GRANT UPDATE (balance, held, transfer_count, active, has_budgets) ON accounts TO inferbase_api;
GRANT INSERT (id, account_id, name, digest, prefix, rpm, tpm, concurrency, expires_at, scopes, allowed_models)
    ON api_keys TO inferbase_api;
GRANT UPDATE (revoked_at, last_used_at) ON api_keys TO inferbase_api;
GRANT INSERT (key_id, budget, parent_id) ON key_budgets TO inferbase_api;
GRANT UPDATE (held, spent, allotted) ON key_budgets TO inferbase_api;
GRANT INSERT ON users, sessions, requests, open_requests, usage, transfers, payment_events TO inferbase_api;
GRANT UPDATE (revoked_at) ON sessions TO inferbase_api;
GRANT UPDATE (delivered_tokens, delivered_seq, prompt_tokens, ended, idempotency_key) ON requests TO inferbase_api;
GRANT DELETE ON open_requests TO inferbase_api;
GRANT INSERT, UPDATE, DELETE ON models TO inferbase_api;
GRANT USAGE ON SEQUENCE catalogue_version TO inferbase_api;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO inferbase_api;

-- Settlement: charges.
GRANT SELECT (id) ON models TO inferbase_settlement;
GRANT SELECT (id, balance, held, transfer_count, has_budgets) ON accounts TO inferbase_settlement;
GRANT UPDATE (balance, held, transfer_count) ON accounts TO inferbase_settlement;
GRANT SELECT, UPDATE (held, spent) ON key_budgets TO inferbase_settlement;
GRANT SELECT ON requests, open_requests, usage TO inferbase_settlement;
GRANT DELETE ON open_requests TO inferbase_settlement;
GRANT INSERT ON usage, transfers TO inferbase_settlement;

-- The janitor: the same, and the catalogue, whose measures it keeps.
GRANT SELECT ON models TO inferbase_janitor;
GRANT UPDATE (template_tokens, message_tokens, version) ON models TO inferbase_janitor;
GRANT USAGE ON SEQUENCE catalogue_version TO inferbase_janitor;
GRANT SELECT (id, balance, held, transfer_count, has_budgets) ON accounts TO inferbase_janitor;
GRANT UPDATE (balance, held, transfer_count) ON accounts TO inferbase_janitor;
GRANT SELECT, UPDATE (held, spent) ON key_budgets TO inferbase_janitor;
GRANT SELECT ON requests, open_requests, usage TO inferbase_janitor;
GRANT DELETE ON open_requests TO inferbase_janitor;
GRANT INSERT ON usage, transfers TO inferbase_janitor;

DO $$
DECLARE
    made REGPROCEDURE;
BEGIN
    FOR made IN SELECT oid FROM pg_proc WHERE pronamespace = 'public'::REGNAMESPACE
                   AND proname IN ('settle_many', 'cost_of', 'id_suffix', 'refuse_change') LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO inferbase_settlement, inferbase_janitor', made);
    END LOOP;
END
$$;
