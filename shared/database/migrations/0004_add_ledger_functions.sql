-- The rest of the ledger's verbs: release (close without a charge), witness (note what was relayed), deposit.

-- Closes requests as failed and free. A request that is closed or unknown is left alone. Ids are distinct.
CREATE FUNCTION release_many(
    request_ids TEXT[], codes TEXT[], now_ms BIGINT, OUT verdicts TEXT[]  -- released, already, unknown
) LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_mergejoin = off AS $$
#variable_conflict use_column
DECLARE
    found RECORD;
    outcome TEXT[];
BEGIN
    SELECT coalesce(array_agg(r.request_id), '{}') AS ids, array_agg(r.account_id) AS accounts,
           array_agg(r.model) AS models, array_agg('failed'::TEXT) AS statuses, array_agg(u.code) AS codes,
           array_agg(NULL::TEXT) AS reasons, array_agg(0) AS zeros, array_agg(FALSE) AS prefills,
           array_agg(greatest(0, now_ms - r.reserved_ms)) AS ages_ms, array_agg(NULL::BIGINT) AS ttfts_ms
      INTO found
      FROM unnest(request_ids, codes) AS u (request_id, code)
      JOIN open_requests o ON o.request_id = u.request_id
      JOIN requests r ON r.request_id = u.request_id;
    outcome := settle_many(found.ids, found.accounts, found.models, found.statuses, found.codes, found.reasons,
                           found.zeros, found.zeros, found.zeros, found.prefills, found.zeros, found.ages_ms,
                           found.ttfts_ms, found.ages_ms);
    SELECT array_agg(CASE
               WHEN f.position IS NOT NULL AND coalesce(outcome[f.position], 'settled') = 'settled' THEN 'released'
               WHEN EXISTS (SELECT FROM requests r WHERE r.request_id = u.request_id) THEN 'already'
               ELSE 'unknown' END ORDER BY u.position)
      INTO verdicts
      FROM unnest(request_ids) WITH ORDINALITY AS u (request_id, position)
      LEFT JOIN unnest(found.ids) WITH ORDINALITY AS f (request_id, position) ON f.request_id = u.request_id;
END
$$;

-- Notes what an API node relayed; it never closes and never touches money. Totals only grow; a seen end stays seen.
-- Rows are locked in id order, so two nodes that witness the same requests do not deadlock.
CREATE FUNCTION witness_many(
    request_ids TEXT[], delivered_tokens INTEGER[], delivered_seqs INTEGER[], prompt_tokens INTEGER[], ended TEXT[]
) RETURNS VOID LANGUAGE sql
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_mergejoin = off AS $$
    UPDATE requests
       SET delivered_tokens = greatest(requests.delivered_tokens, seen.delivered_tokens),
           delivered_seq = greatest(requests.delivered_seq, seen.delivered_seq),
           prompt_tokens = coalesce(seen.prompt_tokens, requests.prompt_tokens),
           ended = CASE WHEN requests.ended = 'finished' THEN 'finished' ELSE seen.ended END
      FROM (SELECT u.* FROM unnest($1, $2, $3, $4, $5)
                AS u (request_id, delivered_tokens, delivered_seq, prompt_tokens, ended)
              JOIN requests r ON r.request_id = u.request_id
             ORDER BY u.request_id FOR NO KEY UPDATE OF r) seen
     WHERE requests.request_id = seen.request_id
$$;

-- Moves credits from `deposits` to a customer, once per transfer id; returns the row, old or new, or none if the
-- account does not exist.
CREATE FUNCTION deposit(transfer_id TEXT, customer_id TEXT, credits BIGINT, reason TEXT) RETURNS SETOF transfers
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM accounts WHERE id = customer_id FOR NO KEY UPDATE;
    IF NOT EXISTS (SELECT FROM transfers WHERE id = transfer_id) THEN
        WITH paid AS (
            UPDATE accounts SET balance = balance + credits, transfer_count = transfer_count + 1
             WHERE id = customer_id RETURNING balance, transfer_count
        )
        INSERT INTO transfers (id, account_id, from_account, to_account, type, amount, balance_after, position,
                               description)
        SELECT transfer_id, customer_id, 'deposits', customer_id, 'deposit', credits, paid.balance,
               paid.transfer_count, reason
          FROM paid;
    END IF;
    RETURN QUERY SELECT * FROM transfers WHERE id = transfer_id;
END
$$;
