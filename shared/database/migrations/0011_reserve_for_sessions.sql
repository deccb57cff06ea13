-- A session reserves like a key: where a request names no key of its account, a live session of that account will do.
-- Keys are asked for first and a session is looked up only where no key was found, so that keys cost what they did.
-- Replaces the functions of 0008, otherwise unchanged.

CREATE FUNCTION session_is_live(session_id TEXT, customer_id TEXT) RETURNS BOOLEAN STABLE LANGUAGE sql AS $$
    SELECT EXISTS (SELECT FROM sessions s WHERE s.id = session_id AND s.account_id = customer_id
                   AND s.revoked_at IS NULL AND s.expires_at > now())
$$;

CREATE OR REPLACE FUNCTION reserve_many(
    request_ids TEXT[], account_ids TEXT[], key_ids TEXT[], models TEXT[], streams BOOLEAN[], lanes TEXT[],
    resumables BOOLEAN[], prompt_prices BIGINT[], cached_prices BIGINT[], completion_prices BIGINT[],
    prompt_bounds INTEGER[], max_tokens INTEGER[], holds_full BIGINT[], holds_least BIGINT[],
    reserved_ms BIGINT[], queue_deadlines_ms BIGINT[], deadlines_ms BIGINT[],
    idempotency_keys TEXT[], body_hashes BYTEA[],
    OUT verdicts TEXT[], OUT holds BIGINT[], OUT available BIGINT[]  -- all NULL: every row reserved in full
) LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_mergejoin = off AS $$
#variable_conflict use_column
DECLARE
    all_fit BOOLEAN;
    budgeted BOOLEAN;
    new_holds BIGINT[] := holds_full;
BEGIN
    SELECT coalesce(sum(wanted.requests) FILTER (WHERE locked.active AND locked.room >= wanted.total), 0)
           = cardinality(request_ids)
           AND NOT EXISTS (
               SELECT FROM (SELECT account_id, key_id, count(idempotency_key) AS keyed
                              FROM unnest(account_ids, key_ids, idempotency_keys)
                                AS u (account_id, key_id, idempotency_key) GROUP BY account_id, key_id) used
                 LEFT JOIN api_keys k ON k.id = used.key_id AND k.account_id = used.account_id
                WHERE k.revoked_at IS NOT NULL OR k.expires_at <= now() OR used.keyed > 0
                   OR (k.id IS NULL AND NOT session_is_live(used.key_id, used.account_id))),
           coalesce(bool_or(locked.has_budgets), FALSE)
      INTO all_fit, budgeted
      FROM (SELECT id, active, has_budgets, balance - held AS room FROM accounts WHERE id = ANY (account_ids)
            ORDER BY id FOR NO KEY UPDATE) locked
      JOIN (SELECT account_id, count(*) AS requests, sum(hold) AS total
              FROM unnest(account_ids, holds_full) AS u (account_id, hold) GROUP BY account_id) wanted
        ON wanted.account_id = locked.id;
    IF all_fit AND budgeted THEN
        all_fit := NOT EXISTS (
            SELECT FROM (SELECT key_id, sum(hold) AS total FROM unnest(key_ids, holds_full) AS u (key_id, hold)
                         GROUP BY key_id) wanted
              JOIN key_budgets b ON b.key_id = wanted.key_id
             WHERE b.budget - b.held - b.spent - b.allotted < wanted.total);
    END IF;
    LOOP
        IF NOT all_fit THEN
            SELECT d.verdicts, d.holds, d.available, d.new_holds INTO verdicts, holds, available, new_holds
              FROM decide_reservations(request_ids, account_ids, key_ids, holds_full, holds_least, reserved_ms,
                                       idempotency_keys) d;
        END IF;
        BEGIN
            WITH reserved AS (
                INSERT INTO requests (request_id, account_id, key_id, model, stream, lane, resumable, prompt_price,
                                      cached_price, completion_price, prompt_bound, max_tokens, hold, reserved_ms,
                                      queue_deadline_ms, deadline_ms, idempotency_key, body_hash)
                SELECT u.* FROM unnest(request_ids, account_ids, key_ids, models, streams, lanes, resumables,
                                       prompt_prices, cached_prices, completion_prices, prompt_bounds, max_tokens,
                                       new_holds, reserved_ms, queue_deadlines_ms, deadlines_ms, idempotency_keys,
                                       body_hashes)
                            AS u (request_id, account_id, key_id, model, stream, lane, resumable, prompt_price,
                                  cached_price, completion_price, prompt_bound, max_tokens, hold, reserved_ms,
                                  queue_deadline_ms, deadline_ms, idempotency_key, body_hash)
                 WHERE u.hold IS NOT NULL
                RETURNING request_id, reserved_ms
            )
            INSERT INTO open_requests (request_id, reserved_ms) SELECT request_id, reserved_ms FROM reserved;
            EXIT;
        EXCEPTION WHEN unique_violation THEN  -- a retried batch meets its own rows: look before deciding
            IF NOT all_fit THEN
                RAISE;
            END IF;
            all_fit := FALSE;
        END;
    END LOOP;
    UPDATE accounts SET held = held + wanted.total
      FROM (SELECT account_id, sum(hold) AS total FROM unnest(account_ids, new_holds) AS u (account_id, hold)
            WHERE hold > 0 GROUP BY account_id) wanted
     WHERE accounts.id = wanted.account_id;
    IF budgeted THEN
        UPDATE key_budgets SET held = held + wanted.total
          FROM (SELECT key_id, sum(hold) AS total FROM unnest(key_ids, new_holds) AS u (key_id, hold)
                WHERE hold > 0 GROUP BY key_id) wanted
         WHERE key_budgets.key_id = wanted.key_id;
    END IF;
END
$$;

-- Decides row by row, accounts being locked. `holds`: what a reserved row holds; `new_holds`: what is yet to be inserted.
-- An idempotency key is free again after a day, or when the run that used it closed without a charge.
CREATE OR REPLACE FUNCTION decide_reservations(
    request_ids TEXT[], account_ids TEXT[], key_ids TEXT[], holds_full BIGINT[], holds_least BIGINT[],
    times_ms BIGINT[], idempotency_keys TEXT[],
    OUT verdicts TEXT[], OUT holds BIGINT[], OUT available BIGINT[], OUT new_holds BIGINT[]
) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    day_ms CONSTANT BIGINT := 86400000;
    asked RECORD;
    room JSONB := '{}';
    verdict TEXT;
    hold BIGINT;
    account_room BIGINT;
    key_room BIGINT;  -- NULL: no budget
BEGIN
    verdicts := '{}'; holds := '{}'; available := '{}'; new_holds := '{}';
    UPDATE requests SET idempotency_key = NULL
      FROM unnest(account_ids, idempotency_keys, times_ms) AS u (account_id, idempotency_key, now_ms)
     WHERE requests.account_id = u.account_id AND requests.idempotency_key = u.idempotency_key
       AND NOT EXISTS (SELECT FROM open_requests o WHERE o.request_id = requests.request_id)
       AND (requests.reserved_ms < u.now_ms - day_ms
            OR EXISTS (SELECT FROM usage WHERE usage.request_id = requests.request_id AND usage.status <> 'completed'
                       AND usage.cost = 0));
    FOR asked IN
        SELECT u.account_id, u.key_id, u.hold_full, u.hold_least, a.active, a.balance - a.held AS room,
               b.budget - b.held - b.spent - b.allotted AS key_room,
               CASE WHEN k.id IS NULL THEN session_is_live(u.key_id, u.account_id)
                    ELSE k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > now()) END AS key_live,
               same.request_id IS NOT NULL AS is_there,
               o.request_id IS NOT NULL AND same.account_id = u.account_id AS is_ours,
               same.hold AS held, twin.request_id IS NOT NULL AS key_taken
          FROM unnest(request_ids, account_ids, key_ids, holds_full, holds_least, idempotency_keys) WITH ORDINALITY
            AS u (request_id, account_id, key_id, hold_full, hold_least, idempotency_key, position)
          LEFT JOIN accounts a ON a.id = u.account_id
          LEFT JOIN api_keys k ON k.id = u.key_id AND k.account_id = u.account_id
          LEFT JOIN key_budgets b ON b.key_id = k.id
          LEFT JOIN requests same ON same.request_id = u.request_id
          LEFT JOIN open_requests o ON o.request_id = u.request_id
          LEFT JOIN requests twin ON twin.account_id = u.account_id AND twin.idempotency_key = u.idempotency_key
         ORDER BY u.position
    LOOP
        account_room := coalesce((room ->> asked.account_id)::BIGINT, asked.room, 0);
        key_room := coalesce((room ->> asked.key_id)::BIGINT, asked.key_room);
        hold := NULL;
        verdict := CASE
            WHEN asked.is_there AND asked.is_ours THEN 'reserved'
            WHEN asked.is_there THEN 'duplicate'
            WHEN asked.active IS NOT TRUE THEN 'account_inactive'
            WHEN NOT asked.key_live THEN 'key_revoked'
            WHEN asked.key_taken THEN 'duplicate'
            WHEN account_room < asked.hold_least THEN 'insufficient'
            WHEN key_room < asked.hold_least THEN 'budget_exceeded'
            ELSE 'reserved' END;
        IF verdict = 'reserved' AND NOT asked.is_there THEN
            hold := least(asked.hold_full, account_room, key_room);
            room := jsonb_set(room, ARRAY[asked.account_id], to_jsonb(account_room - hold));
            IF key_room IS NOT NULL THEN
                room := jsonb_set(room, ARRAY[asked.key_id], to_jsonb(key_room - hold));
            END IF;
        END IF;
        verdicts := verdicts || verdict;
        holds := holds || CASE WHEN asked.is_ours THEN asked.held ELSE coalesce(hold, 0) END;
        available := available || CASE verdict WHEN 'insufficient' THEN account_room ELSE 0 END;
        new_holds := new_holds || hold;
    END LOOP;
END
$$;
