-- A minute of a device is billed once, by the hour that its service told or by the session around it, whichever came first.

-- Where all of a session's minutes were billed before, it ends without a record of its own.
alter table billing.usage_sessions
    drop constraint usage_sessions_stopped,
    add constraint usage_sessions_stopped check (usage_id is null or stopped_at is not null) not valid;

-- A session may begin with an hour of its device, and both be owed. A debt is written in the transaction that writes the
-- hour, which is unique, or ends the session, which is locked and ends once.
alter table billing.debts drop constraint debts_once_an_hour;
comment on table billing.debts is
    'Hours and sessions of devices that the balance did not cover when they were told. A cron collects them as soon as it does, and so does who pays the invoice on which they stand.';
