-- +goose Up

-- For the search over logs (docs/decisions/0012): text by its trigrams, and numbers in the same index.
create extension if not exists pg_trgm;
create extension if not exists btree_gin;

-- +goose Down
drop extension btree_gin;
drop extension pg_trgm;
