create table apps.reviews (
    id text primary key,
    seq bigint generated always as identity,
    application_id text not null,
    action text not null check (action in ('submit', 'approve', 'reject', 'request_changes', 'publish', 'unpublish')),
    reviewer_id text not null,
    comment text,
    created_at timestamptz not null
);
create index reviews_order_idx on apps.reviews (seq desc);
create index reviews_application_idx on apps.reviews (application_id, seq desc);
comment on table apps.reviews is 'What was decided about apps and by whom; it outlives the apps.';
create index apps_pending_idx on apps.apps (created_at, seq) where status = 'pending_review';
