-- Which events of a payment provider were turned into deposits: a repeated event finds itself here.

CREATE TABLE payment_events (
    id TEXT COLLATE "C" PRIMARY KEY,
    transfer_id TEXT COLLATE "C" NOT NULL,
    received_at TIMESTAMPTZ NOT NULL DEFAULT now()
);
