create table media.task_hours (
    hour timestamptz not null,
    type text not null,
    provider text not null,
    status text not null,
    tasks bigint not null,
    seconds double precision not null,
    primary key (hour, type, provider, status)
);
comment on table media.task_hours is 'Tasks that ended, by the hour: how many, and how long they took together.';
create index tasks_completed_idx on media.tasks (completed_at) where completed_at is not null;
create index tasks_open_idx on media.tasks (created_at) where completed_at is null;
