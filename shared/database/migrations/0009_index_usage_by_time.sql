-- Usage and transactions are read by time and by kind, and settlement pays for no further index of them.

-- Usage is listed as it was closed, which is the time that its readers see and ask for. One index serves the pages, the
-- filter by time and the sums; it takes the place of the one by id.
CREATE INDEX usage_of_account_by_time ON usage (account_id, created_at, id);
DROP INDEX usage_of_account;

-- Few transfers are no deductions: deposits are found among a million charges, and lifetime sums need no charge read.
-- A charge is found by its id, which is its request's.
CREATE INDEX transfers_without_deductions ON transfers (account_id, position) WHERE type <> 'deduction';

-- Returns a position at which an account's transfers from `moment` on begin, or one somewhat before it: found by halving,
-- since positions are without gaps and follow time but for the moments that one transaction waits for another's lock.
CREATE FUNCTION position_before(customer_id TEXT, moment TIMESTAMPTZ) RETURNS BIGINT STABLE LANGUAGE plpgsql AS $$
DECLARE
    lock_wait CONSTANT INTERVAL := '10 minutes';
    low BIGINT := 1;
    high BIGINT;
    middle BIGINT;
BEGIN
    SELECT transfer_count + 1 INTO high FROM accounts WHERE id = customer_id;
    WHILE low < high LOOP
        middle := (low + high) / 2;
        IF (SELECT created_at FROM transfers WHERE account_id = customer_id AND position = middle)
           < moment - lock_wait THEN
            low := middle + 1;
        ELSE
            high := middle;
        END IF;
    END LOOP;
    RETURN low;
END
$$;
