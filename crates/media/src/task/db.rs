//! Statements about tasks and their steps.

use contracts::{Event, EventBody, TaskId, Timestamp, UserId};
use platform::events::emit;
use platform::http::Slice;
use sqlx::PgConnection;

use super::{Ending, Step, Task, TaskStatus, TaskType};

/// What a list is narrowed to.
#[derive(Clone, Debug)]
pub struct Filter {
    /// Whose.
    pub user_id: UserId,
    /// Where they stand.
    pub status: Option<TaskStatus>,
    /// What they make.
    pub kind: Option<TaskType>,
}

/// Writes a task and its steps; the objects that the first step is made from.
pub async fn insert(
    conn: &mut PgConnection,
    task: &Task,
    inputs: &[String],
    deadline: Timestamp,
) -> sqlx::Result<()> {
    let insert = sqlx::query(
        "insert into media.tasks (id, user_id, type, status, priority, progress, input_urls, params, credit_cost, refunded,
            deadline_at, created_at, updated_at)
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $12)",
    );
    insert
        .bind(&task.id)
        .bind(&task.user_id)
        .bind(task.kind)
        .bind(task.status)
        .bind(task.priority)
        .bind(task.progress)
        .bind(&task.input_urls)
        .bind(&task.params)
        .bind(task.credit_cost)
        .bind(task.refunded)
        .bind(deadline)
        .bind(task.created_at)
        .execute(&mut *conn)
        .await?;
    for step in &task.steps {
        let insert = sqlx::query(
            "insert into media.steps (task_id, index, type, provider, status, params, inputs) values ($1, $2, $3, $4, $5, $6, $7)",
        );
        let first = if step.index == 0 { inputs } else { &[] };
        insert
            .bind(&task.id)
            .bind(step.index)
            .bind(step.kind)
            .bind(&step.provider)
            .bind(step.status)
            .bind(&step.params)
            .bind(first)
            .execute(&mut *conn)
            .await?;
    }
    Ok(())
}

/// One task.
pub async fn find(conn: &mut PgConnection, id: &TaskId) -> sqlx::Result<Option<Task>> {
    let task: Option<Task> = sqlx::query_as("select * from media.tasks where id = $1")
        .bind(id)
        .fetch_optional(&mut *conn)
        .await?;
    match task {
        Some(task) => Ok(with_steps(conn, vec![task]).await?.pop()),
        None => Ok(None),
    }
}

/// The tasks that a filter leaves, newest first, and how many there are on all pages.
pub async fn list(
    conn: &mut PgConnection,
    filter: &Filter,
    slice: Slice,
) -> sqlx::Result<(Vec<Task>, i64)> {
    let tasks = sqlx::query_as(
        "-- task::list
        select * from media.tasks
        where user_id = $1 and ($2::text is null or status = $2) and ($3::text is null or type = $3)
        order by created_at desc, seq desc limit $4 offset $5",
    )
    .bind(&filter.user_id)
    .bind(filter.status)
    .bind(filter.kind)
    .bind(slice.limit)
    .bind(slice.offset)
    .fetch_all(&mut *conn)
    .await?;
    let total = sqlx::query_scalar(
        "select count(*) from media.tasks
        where user_id = $1 and ($2::text is null or status = $2) and ($3::text is null or type = $3)",
    )
    .bind(&filter.user_id)
    .bind(filter.status)
    .bind(filter.kind)
    .fetch_one(&mut *conn)
    .await?;
    Ok((with_steps(conn, tasks).await?, total))
}

/// Brings a task and its open steps to their end and tells of it; `false` where the task had ended before. The caller
/// holds the lock of the task's job. This is the only way to a final status.
pub async fn end(
    conn: &mut PgConnection,
    id: &TaskId,
    ending: &Ending,
    now: Timestamp,
) -> sqlx::Result<bool> {
    let update = sqlx::query_as(
        "-- task::end
        update media.tasks set status = $2, results = $3, error_code = $4, error_message = $5,
            progress = case when $2 = 'succeeded' then 100 else progress end, updated_at = $6, completed_at = $6
        where id = $1 and completed_at is null
        returning user_id, type",
    );
    let ended: Option<(UserId, TaskType)> = update
        .bind(id)
        .bind(ending.status())
        .bind(ending.results())
        .bind(ending.code())
        .bind(ending.message())
        .bind(now)
        .fetch_optional(&mut *conn)
        .await?;
    let Some((user_id, kind)) = ended else {
        return Ok(false);
    };
    sqlx::query(
        "update media.steps set status = $2, outputs = $3, error = $4, completed_at = $5
        where task_id = $1 and completed_at is null",
    )
    .bind(id)
    .bind(ending.status())
    .bind(ending.results())
    .bind(ending.message())
    .bind(now)
    .execute(&mut *conn)
    .await?;
    // What former steps made is not needed any more.
    sqlx::query("update media.jobs set swept = false where task_id = $1 and swept")
        .bind(id)
        .execute(&mut *conn)
        .await?;
    let body = EventBody::TaskFinished {
        task_id: id.clone(),
        kind: kind.name().to_owned(),
        status: ending.status().name().to_owned(),
        error_code: ending.code().map(str::to_owned),
    };
    emit(conn, &Event::new(user_id, now, body)).await?;
    Ok(true)
}

/// Tells a task's user how far it is; nothing once it has ended.
pub async fn tell(conn: &mut PgConnection, id: &TaskId, now: Timestamp) -> sqlx::Result<()> {
    let open: Option<(UserId, TaskType, TaskStatus, i16)> = sqlx::query_as(
        "select user_id, type, status, progress from media.tasks where id = $1 and completed_at is null",
    )
    .bind(id)
    .fetch_optional(&mut *conn)
    .await?;
    let Some((user_id, kind, status, progress)) = open else {
        return Ok(());
    };
    let body = EventBody::TaskProgressed {
        task_id: id.clone(),
        kind: kind.name().to_owned(),
        status: status.name().to_owned(),
        progress,
    };
    emit(conn, &Event::new(user_id, now, body)).await
}

async fn with_steps(conn: &mut PgConnection, tasks: Vec<Task>) -> sqlx::Result<Vec<Task>> {
    let ids: Vec<_> = tasks.iter().map(|task| task.id.as_str()).collect();
    let mut steps: Vec<Step> =
        sqlx::query_as("select * from media.steps where task_id = any($1) order by index")
            .bind(ids)
            .fetch_all(conn)
            .await?;
    let complete = |task: Task| {
        let own = steps
            .extract_if(.., |step| step.task_id == task.id)
            .collect();
        task.completed(own)
    };
    Ok(tasks.into_iter().map(complete).collect())
}
