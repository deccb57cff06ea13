-- What the batch lane costs less, per model, and how large an account's share of a busy queue is against the others'.

ALTER TABLE models
    ADD COLUMN batch_discount_percent SMALLINT NOT NULL DEFAULT 50
        CHECK (batch_discount_percent BETWEEN 0 AND 100);

ALTER TABLE accounts
    ADD COLUMN weight INTEGER NOT NULL DEFAULT 1 CHECK (weight BETWEEN 1 AND 1000);
