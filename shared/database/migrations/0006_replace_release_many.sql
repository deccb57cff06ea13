-- A request whose client left before it was queued ends as cancelled, as it does in the queue; it was closed as failed.

-- Closes requests free of charge: as cancelled where the code is request_cancelled, else as failed. A request that is
-- closed or unknown is left alone. Ids are distinct.
CREATE OR REPLACE FUNCTION release_many(
    request_ids TEXT[], codes TEXT[], now_ms BIGINT, OUT verdicts TEXT[]  -- released, already, unknown
) LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_mergejoin = off AS $$
#variable_conflict use_column
DECLARE
    found RECORD;
    outcome TEXT[];
BEGIN
    SELECT coalesce(array_agg(r.request_id), '{}') AS ids, array_agg(r.account_id) AS accounts,
           array_agg(r.model) AS models,
           array_agg(CASE u.code WHEN 'request_cancelled' THEN 'cancelled' ELSE 'failed' END) AS statuses,
           array_agg(u.code) AS codes,
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
