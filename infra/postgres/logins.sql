-- Lets the roles of roles.sql log in; psql reads their passwords from the secrets that compose mounts.
\set ON_ERROR_STOP on
\set api `cat /run/secrets/postgres_api`
\set settlement `cat /run/secrets/postgres_settlement`
\set janitor `cat /run/secrets/postgres_janitor`
ALTER ROLE inferbase_api LOGIN PASSWORD :'api';
ALTER ROLE inferbase_settlement LOGIN PASSWORD :'settlement';
ALTER ROLE inferbase_janitor LOGIN PASSWORD :'janitor';
