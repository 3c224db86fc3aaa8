-- Whoever tells all users something goes through them by their numbers.
create index accounts_seq_idx on users.accounts (seq);
