create table notifications.settings (
    user_id text primary key,
    email_enabled boolean not null default true,
    sms_enabled boolean not null default true,
    push_enabled boolean not null default true,
    sound_enabled boolean not null default true,
    language text,
    quiet_hours jsonb,
    digest text not null default 'off' check (digest in ('off', 'hourly', 'daily')),
    updated_at timestamptz not null
);
comment on table notifications.settings is
    'What users chose for all their notifications. Who has no row chose nothing.';
comment on column notifications.settings.quiet_hours is
    '{from, to, timeZone}: within them e-mail, text messages and webhooks wait.';

create table notifications.preferences (
    user_id text not null,
    kind text not null check (kind in ('system', 'billing', 'device', 'promotion', 'security')),
    enabled boolean not null,
    channels jsonb,
    updated_at timestamptz not null,
    primary key (user_id, kind)
);
comment on table notifications.preferences is
    'What users chose for the notifications of a type. One that is not enabled is not stored, unless it is urgent.';
comment on column notifications.preferences.channels is
    'The ways that its notifications take; null where the user chose none.';
