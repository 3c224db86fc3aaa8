create schema media;

comment on schema media is
    'Pictures that were sent in, and the tasks that make something of them. Owned by the crate of that name.';

create table media.uploads (
    seq bigint generated always as identity,
    key text primary key,
    user_id text not null,
    ticket bytea not null constraint uploads_ticket_key unique,
    content_type text not null check (content_type in ('image/jpeg', 'image/png', 'image/webp')),
    size bigint not null check (size between 1 and 10485760),
    tries smallint not null default 0 check (tries >= 0),
    object_key text,
    created_at timestamptz not null,
    expires_at timestamptz not null,
    stored_at timestamptz,
    constraint uploads_stored_whole check ((stored_at is null) = (object_key is null))
);
create index uploads_user_idx on media.uploads (user_id);
create index uploads_unused_idx on media.uploads (expires_at) where stored_at is null;
create index uploads_old_idx on media.uploads (stored_at) where stored_at is not null;
comment on table media.uploads is
    'Permissions to send one file, and the files that came. Each try writes an object of its own, and the first one that is whole is named here.';
comment on column media.uploads.ticket is 'SHA-256 of the secret in the address that takes the file.';
comment on column media.uploads.tries is
    'Objects that may exist are the key with .1 to .tries appended; so none is forgotten when a process dies between object and row.';

create table media.tasks (
    seq bigint generated always as identity,
    id text primary key,
    user_id text not null,
    type text not null check (type in
        ('basic_clean', 'model_pose12', 'video_generate', 'image_stitch', 'video_compose', 'text_process')),
    status text not null check (status in
        ('queued', 'submitted', 'running', 'succeeded', 'failed', 'cancelled', 'expired')),
    priority smallint not null check (priority between 0 and 2),
    progress smallint not null default 0 check (progress between 0 and 100),
    input_urls text[] not null,
    params jsonb not null,
    results text[] not null default '{}',
    error_code text,
    error_message text,
    credit_cost integer not null default 0 check (credit_cost >= 0),
    refunded boolean not null default false,
    deadline_at timestamptz not null,
    created_at timestamptz not null,
    updated_at timestamptz not null,
    completed_at timestamptz,
    constraint tasks_final_completed check
        ((completed_at is not null) = (status in ('succeeded', 'failed', 'cancelled', 'expired'))),
    constraint tasks_results_of_success check (status = 'succeeded' or results = '{}')
);
create index tasks_order_idx on media.tasks (user_id, created_at desc, seq desc);
comment on table media.tasks is 'What users want made. A final status never changes, whoever tries.';
comment on column media.tasks.results is 'Keys of the objects that were made: those of the worker that won, and of no other.';
comment on column media.tasks.priority is '0 low, 1 normal, 2 high.';

create function media.keep_final() returns trigger language plpgsql as $$
begin
    raise exception 'task % is % and stays so', old.id, old.status using errcode = 'check_violation';
end
$$;
create trigger tasks_final_stays before update on media.tasks for each row
    when (old.completed_at is not null and (new.status, new.results, new.completed_at)
        is distinct from (old.status, old.results, old.completed_at))
    execute function media.keep_final();

create table media.steps (
    task_id text not null references media.tasks (id) on delete cascade,
    index smallint not null check (index >= 0),
    type text not null,
    provider text not null,
    provider_ref text,
    status text not null check (status in
        ('queued', 'submitted', 'running', 'succeeded', 'failed', 'cancelled', 'expired')),
    attempts smallint not null default 0 check (attempts >= 0),
    params jsonb not null,
    inputs text[] not null,
    outputs text[] not null default '{}',
    error text,
    started_at timestamptz,
    completed_at timestamptz,
    primary key (task_id, index)
);
comment on table media.steps is 'The parts of a task in their order; the outputs of one are the inputs of the next. Both are keys of objects.';

create table media.jobs (
    id bigint generated always as identity primary key,
    task_id text not null,
    step_index smallint not null,
    user_id text not null,
    priority smallint not null,
    state text not null check (state in ('ready', 'leased', 'done', 'dead')),
    due_at timestamptz not null,
    deadline_at timestamptz not null,
    lease_owner text,
    lease_until timestamptz,
    attempt smallint not null default 0 check (attempt >= 0),
    fence bigint not null default 0 check (fence >= 0),
    ended_at timestamptz,
    swept boolean not null default false,
    constraint jobs_step_key unique (task_id, step_index),
    constraint jobs_step_fkey foreign key (task_id, step_index) references media.steps (task_id, index) on delete cascade,
    constraint jobs_leased_whole check ((state = 'leased') = (lease_until is not null)),
    constraint jobs_ended_whole check ((state in ('done', 'dead')) = (ended_at is not null))
);
create index jobs_open_idx on media.jobs (priority desc, due_at) where state in ('ready', 'leased');
create index jobs_user_idx on media.jobs (user_id) where state in ('ready', 'leased');
create index jobs_deadline_idx on media.jobs (deadline_at) where state in ('ready', 'leased');
create index jobs_unswept_idx on media.jobs (ended_at) where not swept;
comment on table media.jobs is
    'The work on a step: whose it is and until when. Whoever changes a task holds the lock of its job first. Leases follow the clock of the database, due times and deadlines that of the service.';
comment on column media.jobs.fence is
    'Grows with each claim, cancellation and expiry; every write of a worker names the number it was given, so a late one changes nothing.';
comment on column media.jobs.swept is 'Whether objects of workers that lost were looked for and deleted after the end.';
