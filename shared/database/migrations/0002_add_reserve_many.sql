-- Holds credits for many requests in one statement, because one commit per request is what makes money slow.
-- Row by row it decides exactly as one call per row in the same order would: a refused row consumes nothing.
-- Where every row fits (the usual case) nothing is looped over; else one pass in memory decides, in order.
-- The caller sends no request id and no (account, idempotency key) twice in one call.
-- Accounts are locked first and in id order, here and in every function of the ledger: so no two of them deadlock.
-- Planner settings are pinned: a plan made while the tables were empty would otherwise scan them for good.

CREATE FUNCTION reserve_many(
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
    new_holds BIGINT[] := holds_full;
BEGIN
    SELECT coalesce(sum(wanted.requests) FILTER (WHERE locked.active AND locked.room >= wanted.total), 0)
           = cardinality(request_ids)
           AND NOT EXISTS (
               SELECT FROM (SELECT account_id, key_id, count(idempotency_key) AS keyed
                              FROM unnest(account_ids, key_ids, idempotency_keys)
                                AS u (account_id, key_id, idempotency_key) GROUP BY account_id, key_id) used
                 LEFT JOIN api_keys k ON k.id = used.key_id AND k.account_id = used.account_id
                WHERE k.id IS NULL OR k.revoked_at IS NOT NULL OR k.expires_at <= now() OR used.keyed > 0)
      INTO all_fit
      FROM (SELECT id, active, balance - held AS room FROM accounts WHERE id = ANY (account_ids)
            ORDER BY id FOR NO KEY UPDATE) locked
      JOIN (SELECT account_id, count(*) AS requests, sum(hold) AS total
              FROM unnest(account_ids, holds_full) AS u (account_id, hold) GROUP BY account_id) wanted
        ON wanted.account_id = locked.id;
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
END
$$;

-- Decides row by row, accounts being locked. `holds`: what a reserved row holds; `new_holds`: what is yet to be inserted.
-- An idempotency key is free again after a day, or when the run that used it closed without a charge.
CREATE FUNCTION decide_reservations(
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
        SELECT u.account_id, u.hold_full, u.hold_least, a.active, a.balance - a.held AS room,
               k.id IS NOT NULL AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > now()) AS key_live,
               same.request_id IS NOT NULL AS is_there,
               o.request_id IS NOT NULL AND same.account_id = u.account_id AS is_ours,
               same.hold AS held, twin.request_id IS NOT NULL AS key_taken
          FROM unnest(request_ids, account_ids, key_ids, holds_full, holds_least, idempotency_keys) WITH ORDINALITY
            AS u (request_id, account_id, key_id, hold_full, hold_least, idempotency_key, position)
          LEFT JOIN accounts a ON a.id = u.account_id
          LEFT JOIN api_keys k ON k.id = u.key_id AND k.account_id = u.account_id
          LEFT JOIN requests same ON same.request_id = u.request_id
          LEFT JOIN open_requests o ON o.request_id = u.request_id
          LEFT JOIN requests twin ON twin.account_id = u.account_id AND twin.idempotency_key = u.idempotency_key
         ORDER BY u.position
    LOOP
        account_room := coalesce((room ->> asked.account_id)::BIGINT, asked.room, 0);
        hold := NULL;
        verdict := CASE
            WHEN asked.is_there AND asked.is_ours THEN 'reserved'
            WHEN asked.is_there THEN 'duplicate'
            WHEN asked.active IS NOT TRUE THEN 'account_inactive'
            WHEN NOT asked.key_live THEN 'key_revoked'
            WHEN asked.key_taken THEN 'duplicate'
            WHEN account_room < asked.hold_least THEN 'insufficient'
            ELSE 'reserved' END;
        IF verdict = 'reserved' AND NOT asked.is_there THEN
            hold := least(asked.hold_full, account_room);
            room := jsonb_set(room, ARRAY[asked.account_id], to_jsonb(account_room - hold));
        END IF;
        verdicts := verdicts || verdict;
        holds := holds || CASE WHEN asked.is_ours THEN asked.held ELSE coalesce(hold, 0) END;
        available := available || CASE verdict WHEN 'insufficient' THEN account_room ELSE 0 END;
        new_holds := new_holds || hold;
    END LOOP;
END
$$;
