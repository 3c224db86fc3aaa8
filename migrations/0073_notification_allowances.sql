alter table notifications.deliveries add column counted boolean not null default false;
comment on column notifications.deliveries.counted is
    'Whether its message was counted in notifications.allowances: it is once, however often it is tried.';

create table notifications.allowances (
    user_id text not null,
    channel text not null check (channel in ('email', 'sms')),
    day date not null,
    messages integer not null,
    primary key (user_id, channel)
);
comment on table notifications.allowances is
    'How many mails and text messages left for a user on the last day, in UTC, on which one did.';
