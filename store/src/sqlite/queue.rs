//! The build queue in the same SQLite file. A receipt is random, so that a worker whose time-out has passed cannot touch a job that
//! another worker has now.

use super::{
    SqliteStore,
    db::Failure,
    records::{decode, encode, int, now},
};
use crate::{BuildJob, BuildQueue, Delivery, QueueError, StoreError};
use async_trait::async_trait;
use rusqlite::{OptionalExtension, params};
use std::time::Duration;

/// How often a waiting worker looks; a look is one indexed read.
const LOOK_EVERY: Duration = Duration::from_millis(100);

fn queue_error(error: StoreError) -> QueueError {
    match error {
        StoreError::Unavailable { call, resource, detail } => QueueError::Unavailable { call, resource, detail },
        other => QueueError::Unavailable { call: "queue", resource: "sqlite".into(), detail: other.to_string() },
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl SqliteStore {
    async fn take(&self, visibility: Duration) -> Result<Option<Delivery>, QueueError> {
        let due = self
            .db
            .read("look for a job", move |db| {
                let sql = "SELECT 1 FROM jobs WHERE visible_at_ms <= ?1 LIMIT 1";
                Ok(db.prepare_cached(sql)?.query_row([int(now().0)], |_| Ok(())).optional()?.is_some())
            })
            .await
            .map_err(queue_error)?;
        if !due {
            return Ok(None);
        }
        let receives_max = self.receives_max;
        let receipt = hex::encode(rand::random::<[u8; 16]>());
        self.db
            .write("receive a job", move |db| {
                loop {
                    let sql = "SELECT id, doc, attempts FROM jobs WHERE visible_at_ms <= ?1 ORDER BY visible_at_ms, id LIMIT 1";
                    let row: Option<(i64, String, u32)> =
                        db.prepare_cached(sql)?.query_row([int(now().0)], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?))).optional()?;
                    let Some((id, doc, attempts)) = row else { return Ok(None) };
                    if attempts >= receives_max {
                        db.execute("INSERT INTO dead_jobs (doc) VALUES (?1)", [&doc])?;
                        db.execute("DELETE FROM jobs WHERE id = ?1", [id])?;
                        continue;
                    }
                    let visible_at = int(now().0.saturating_add(millis(visibility)));
                    db.execute(
                        "UPDATE jobs SET visible_at_ms = ?2, attempts = attempts + 1, receipt = ?3 WHERE id = ?1",
                        params![id, visible_at, receipt],
                    )?;
                    let job: BuildJob = decode(|| "job".into(), &doc)?;
                    return Ok(Some(Delivery { job, receipt: receipt.clone(), attempt: attempts + 1 }));
                }
            })
            .await
            .map_err(queue_error)
    }

    async fn hide(&self, call: &'static str, delivery: &Delivery, duration: Duration, keep: bool) -> Result<(), QueueError> {
        let receipt = delivery.receipt.clone();
        let changed = self
            .db
            .write(call, move |db| {
                let visible_at = int(now().0.saturating_add(millis(duration)));
                let sql = "UPDATE jobs SET visible_at_ms = ?2, receipt = CASE WHEN ?3 THEN receipt END WHERE receipt = ?1 AND visible_at_ms > ?4";
                Ok(db.execute(sql, params![receipt, visible_at, keep, int(now().0)])?)
            })
            .await
            .map_err(queue_error)?;
        if changed == 1 { Ok(()) } else { Err(QueueError::Stale) }
    }
}

#[async_trait]
impl BuildQueue for SqliteStore {
    async fn ping(&self) -> Result<(), QueueError> {
        crate::FunctionStore::ping(self).await.map_err(queue_error)
    }

    async fn send(&self, job: &BuildJob, delay: Duration) -> Result<(), QueueError> {
        let job = job.clone();
        self.db
            .write("send a job", move |db| {
                let doc = encode("job", &job)?;
                db.execute(
                    "INSERT INTO jobs (doc, visible_at_ms) VALUES (?1, ?2)",
                    params![doc, int(now().0.saturating_add(millis(delay)))],
                )?;
                Ok(())
            })
            .await
            .map_err(queue_error)
    }

    async fn receive(&self, wait: Duration, visibility: Duration) -> Result<Option<Delivery>, QueueError> {
        let until = tokio::time::Instant::now() + wait;
        loop {
            if let Some(delivery) = self.take(visibility).await? {
                return Ok(Some(delivery));
            }
            let left = until.saturating_duration_since(tokio::time::Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            tokio::time::sleep(left.min(LOOK_EVERY)).await;
        }
    }

    async fn extend(&self, delivery: &Delivery, visibility: Duration) -> Result<(), QueueError> {
        self.hide("extend a job", delivery, visibility, true).await
    }

    async fn settle(&self, delivery: &Delivery) -> Result<(), QueueError> {
        let receipt = delivery.receipt.clone();
        self.db
            .write("settle a job", move |db| Ok(db.execute("DELETE FROM jobs WHERE receipt = ?1", [receipt])?))
            .await
            .map_err(queue_error)?;
        Ok(())
    }

    async fn release(&self, delivery: &Delivery, delay: Duration) -> Result<(), QueueError> {
        self.hide("release a job", delivery, delay, false).await
    }

    async fn depth(&self) -> Result<u64, QueueError> {
        self.db
            .read("count jobs", |db| Ok(db.query_row("SELECT count(*) FROM jobs", [], |r| r.get::<_, i64>(0))?.unsigned_abs()))
            .await
            .map_err(queue_error)
    }

    async fn receive_dead(&self, limit: usize, _: Duration) -> Result<Vec<Delivery>, QueueError> {
        let (limit, attempt) = (int(limit as u64), self.receives_max);
        self.db
            .read("look for dead jobs", move |db| {
                let mut statement = db.prepare_cached("SELECT id, doc FROM dead_jobs ORDER BY id LIMIT ?1")?;
                let rows = statement
                    .query_map([limit], |r| Ok((r.get::<_, i64>(0)?, r.get::<_, String>(1)?)))?
                    .collect::<Result<Vec<_>, _>>()?;
                let dead = |(id, doc): (i64, String)| {
                    Ok(Delivery { job: decode(|| "job".into(), &doc)?, receipt: id.to_string(), attempt })
                };
                rows.into_iter().map(dead).collect::<Result<Vec<_>, Failure>>()
            })
            .await
            .map_err(queue_error)
    }

    async fn settle_dead(&self, delivery: &Delivery) -> Result<(), QueueError> {
        let receipt = delivery.receipt.clone();
        self.db
            .write("settle a dead job", move |db| Ok(db.execute("DELETE FROM dead_jobs WHERE id = ?1", [receipt])?))
            .await
            .map_err(queue_error)?;
        Ok(())
    }
}
