-- Every gateway asks several times a second which sessions have ended a moment ago.
create index sessions_ended_idx on platform.sessions (ended_at) where ended_at is not null;
