//! Webhooks, and what happened, in order: each webhook has passed all events up to one, and is owed those behind it.
//! An event is written in the transaction of what it tells of, so none is told that did not happen, and none is missed.

use model::audit::Deed;
use model::webhook::{Event, Happening, Standing, Webhook};
use model::{Name, Timestamp};
use sqlx::Row;
use sqlx::any::AnyRow;

use crate::audit::{count, moment};
use crate::tokens::named;
use crate::{Store, StoreError, StoreErrorKind, Work};

/// Webhooks of a fleet.
pub const MOST_WEBHOOKS: usize = 100;
/// Events that are kept for webhooks that are behind.
pub const MOST_EVENTS: u64 = 100_000;

/// A webhook as it is kept.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeptWebhook {
    /// What operators say.
    pub webhook: Webhook,
    /// What its secret is made of.
    pub salt: String,
    /// What its secret before was made of, and until when that is good.
    pub older: Option<(String, Timestamp)>,
    /// The last event that it needs no more.
    pub passed: u64,
    /// How it goes.
    pub standing: Standing,
}

fn read<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|error| StoreError::corrupt("a webhook").caused_by(error))
}

fn text<T: serde::Serialize>(value: &T) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| StoreError::corrupt("write a webhook").caused_by(error))
}

fn number(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn kept(row: &AnyRow) -> Result<KeptWebhook, StoreError> {
    let (body, standing): (String, String) = (row.try_get("body")?, row.try_get("standing")?);
    let older_salt: Option<String> = row.try_get("older_salt")?;
    let older_until: Option<i64> = row.try_get("older_until")?;
    Ok(KeptWebhook {
        webhook: read(&body)?,
        salt: row.try_get("salt")?,
        older: older_salt.zip(older_until.map(moment).transpose()?),
        passed: count(row.try_get("passed")?)?,
        standing: read(&standing)?,
    })
}

fn event(row: &AnyRow) -> Result<Event, StoreError> {
    Ok(Event {
        number: count(row.try_get("number")?)?,
        id: row.try_get("id")?,
        topic: row.try_get("topic")?,
        body: row.try_get("body")?,
    })
}

fn no_webhook(name: &Name) -> StoreError {
    StoreError::new(StoreErrorKind::NotFound, format!("there is no webhook {name}"))
}

impl Work<'_> {
    /// The number of the newest event, or the last that some webhook has passed.
    async fn newest_event(&mut self) -> Result<u64, StoreError> {
        let mut newest = 0;
        for text in
            ["SELECT MAX(number) AS newest FROM webhook_events", "SELECT MAX(passed) AS newest FROM webhooks"]
        {
            let row = sqlx::query(text).fetch_one(&mut *self.transaction).await?;
            newest = newest.max(count(row.try_get::<Option<i64>, _>("newest")?.unwrap_or(0))?);
        }
        Ok(newest)
    }

    /// Something happened, of which webhooks are to be told, if there are any.
    pub(crate) async fn happened(&mut self, happening: Happening) -> Result<(), StoreError> {
        let some = sqlx::query("SELECT 1 AS some FROM webhooks LIMIT 1");
        if some.fetch_optional(&mut *self.transaction).await?.is_none() {
            return Ok(());
        }
        let event = happening.numbered(self.newest_event().await? + 1);
        sqlx::query("INSERT INTO webhook_events (number, id, topic, body) VALUES ($1, $2, $3, $4)")
            .bind(number(event.number))
            .bind(event.id)
            .bind(event.topic)
            .bind(event.body)
            .execute(&mut *self.transaction)
            .await?;
        Ok(())
    }

    async fn webhook(&mut self, name: &Name) -> Result<KeptWebhook, StoreError> {
        let row = sqlx::query("SELECT * FROM webhooks WHERE name = $1").bind(name.as_str());
        row.fetch_optional(&mut *self.transaction).await?.as_ref().map_or_else(|| Err(no_webhook(name)), kept)
    }

    async fn put_webhook(&mut self, kept: &KeptWebhook) -> Result<(), StoreError> {
        let (older_salt, older_until) = kept.older.clone().unzip();
        let text_of = "UPDATE webhooks SET body = $1, salt = $2, older_salt = $3, older_until = $4, passed = $5, \
                       standing = $6 WHERE name = $7";
        sqlx::query(text_of)
            .bind(text(&kept.webhook)?)
            .bind(&kept.salt)
            .bind(older_salt)
            .bind(older_until.map(Timestamp::as_millisecond))
            .bind(number(kept.passed))
            .bind(text(&kept.standing)?)
            .bind(kept.webhook.name.as_str())
            .execute(&mut *self.transaction)
            .await?;
        Ok(())
    }
}

impl Store {
    /// A new webhook; it is told of what happens from now on.
    ///
    /// # Errors
    /// [`StoreErrorKind::Conflict`] when there is one of this name, or there are too many.
    pub async fn add_webhook(
        &self,
        webhook: &Webhook,
        salt: &str,
        deed: Deed,
    ) -> Result<KeptWebhook, StoreError> {
        let mut work = self.work().await?;
        let row = sqlx::query("SELECT COUNT(*) AS webhooks FROM webhooks");
        let row = row.fetch_one(&mut *work.transaction).await?;
        if count(row.try_get("webhooks")?)? >= MOST_WEBHOOKS as u64 {
            let why = format!("there are {MOST_WEBHOOKS} webhooks; remove some first");
            return Err(StoreError::new(StoreErrorKind::Conflict, why));
        }
        let kept = KeptWebhook {
            webhook: webhook.clone(),
            salt: salt.to_owned(),
            older: None,
            passed: work.newest_event().await?,
            standing: Standing::default(),
        };
        let insert = "INSERT INTO webhooks (name, body, salt, passed, standing) VALUES ($1, $2, $3, $4, $5)";
        let added = sqlx::query(insert)
            .bind(webhook.name.as_str())
            .bind(text(&kept.webhook)?)
            .bind(salt)
            .bind(number(kept.passed))
            .bind(text(&kept.standing)?)
            .execute(&mut *work.transaction)
            .await;
        added.map_err(StoreError::from).map_err(|error| match error.kind() {
            StoreErrorKind::Conflict => {
                let why =
                    format!("there is a webhook {} already; change it, or choose another name", webhook.name);
                StoreError::new(StoreErrorKind::Conflict, why).caused_by(error)
            }
            _ => error,
        })?;
        work.audit(deed).await?;
        work.commit().await?;
        Ok(kept)
    }

    /// Changes a webhook, in one step with reading it. Its name stays.
    ///
    /// # Errors
    /// [`StoreErrorKind::NotFound`].
    pub async fn change_webhook(
        &self,
        name: &Name,
        deed: Deed,
        change: impl FnOnce(&mut KeptWebhook) + Send,
    ) -> Result<KeptWebhook, StoreError> {
        let mut work = self.work().await?;
        let mut kept = work.webhook(name).await?;
        change(&mut kept);
        kept.webhook.name = name.clone();
        work.put_webhook(&kept).await?;
        work.audit(deed).await?;
        work.commit().await?;
        Ok(kept)
    }

    /// Forgets a webhook, and what only it was owed.
    ///
    /// # Errors
    /// [`StoreErrorKind::NotFound`].
    pub async fn remove_webhook(&self, name: &Name, deed: Deed) -> Result<(), StoreError> {
        let mut work = self.work().await?;
        work.webhook(name).await?;
        let remove = sqlx::query("DELETE FROM webhooks WHERE name = $1").bind(name.as_str());
        remove.execute(&mut *work.transaction).await?;
        work.audit(deed).await?;
        work.commit().await
    }

    /// Notes how a delivery went: `passed` is what the webhook needs no more, and `was_taken` says that its receiver has the
    /// last of it. False when the webhook was changed meanwhile: then only what was taken counts; or when it is another one,
    /// or has passed that already.
    ///
    /// # Errors
    /// When the database cannot be used.
    pub async fn delivered(
        &self,
        then: &KeptWebhook,
        passed: u64,
        was_taken: bool,
        note: impl FnOnce(&mut Standing) + Send,
    ) -> Result<bool, StoreError> {
        let mut work = self.work().await?;
        let mut kept = match work.webhook(&then.webhook.name).await {
            Err(error) if error.kind() == StoreErrorKind::NotFound => return Ok(false),
            kept => kept?,
        };
        let is_other =
            kept.salt != then.salt && kept.older.as_ref().is_none_or(|(older, _)| *older != then.salt);
        if is_other || kept.passed > passed {
            return Ok(false);
        }
        let same = kept.webhook == then.webhook && kept.salt == then.salt;
        if !same && !was_taken {
            return Ok(false);
        }
        kept.passed = passed;
        if same {
            note(&mut kept.standing);
        }
        work.put_webhook(&kept).await?;
        work.commit().await?;
        Ok(same)
    }

    /// Forgets events that nobody needs any more, and the oldest of too many.
    ///
    /// # Errors
    /// When the database cannot be used.
    pub async fn forget_webhook_events(&self, most: u64) -> Result<(), StoreError> {
        let mut work = self.work().await?;
        let newest = work.newest_event().await?;
        let rows = sqlx::query("SELECT * FROM webhooks").fetch_all(&mut *work.transaction).await?;
        let all = rows.iter().map(kept).collect::<Result<Vec<_>, _>>()?;
        let oldest = newest.saturating_sub(most);
        let unneeded = all.iter().map(|kept| kept.passed).min().unwrap_or(newest).max(oldest);
        for mut kept in all.into_iter().filter(|kept| kept.passed < oldest) {
            kept.standing.lost += oldest - kept.passed;
            kept.passed = oldest;
            work.put_webhook(&kept).await?;
        }
        let forget = sqlx::query("DELETE FROM webhook_events WHERE number <= $1").bind(number(unneeded));
        forget.execute(&mut *work.transaction).await?;
        work.commit().await
    }

    /// All webhooks, by name.
    ///
    /// # Errors
    /// When the database cannot be used; so for all that follow.
    pub async fn webhooks(&self) -> Result<Vec<KeptWebhook>, StoreError> {
        let rows = sqlx::query("SELECT * FROM webhooks ORDER BY name").fetch_all(&self.readers).await?;
        rows.iter().map(kept).collect()
    }

    /// One webhook.
    ///
    /// # Errors
    /// [`StoreErrorKind::NotFound`].
    pub async fn webhook(&self, name: &Name) -> Result<KeptWebhook, StoreError> {
        let row = sqlx::query("SELECT * FROM webhooks WHERE name = $1").bind(name.as_str());
        row.fetch_optional(&self.readers).await?.as_ref().map_or_else(|| Err(no_webhook(name)), kept)
    }

    /// Events behind a number, oldest first.
    pub async fn webhook_events(&self, behind: u64, most: u32) -> Result<Vec<Event>, StoreError> {
        let rows = sqlx::query("SELECT * FROM webhook_events WHERE number > $1 ORDER BY number LIMIT $2")
            .bind(number(behind))
            .bind(i64::from(most))
            .fetch_all(&self.readers)
            .await?;
        rows.iter().map(event).collect()
    }

    /// The number of the newest event; 0 if there is none.
    pub async fn newest_webhook_event(&self) -> Result<u64, StoreError> {
        let row = sqlx::query("SELECT MAX(number) AS newest FROM webhook_events");
        let row = row.fetch_one(&self.readers).await?;
        count(row.try_get::<Option<i64>, _>("newest")?.unwrap_or(0))
    }

    /// How many events are behind a number.
    pub async fn webhook_events_behind(&self, behind: u64) -> Result<u64, StoreError> {
        let row = sqlx::query("SELECT COUNT(*) AS events FROM webhook_events WHERE number > $1");
        let row = row.bind(number(behind)).fetch_one(&self.readers).await?;
        count(row.try_get("events")?)
    }

    /// Hosts that count as lost.
    pub async fn lost_hosts(&self) -> Result<Vec<Name>, StoreError> {
        let rows = sqlx::query("SELECT name FROM hosts WHERE lost IS NOT NULL ORDER BY name");
        let rows = rows.fetch_all(&self.readers).await?;
        rows.iter().map(|row| named(row.try_get("name")?)).collect()
    }

    /// Notes that hosts are lost, or back.
    pub async fn note_lost(&self, hosts: &[Name], lost: bool, at: Timestamp) -> Result<(), StoreError> {
        let mut work = self.work().await?;
        for host in hosts {
            let text = match lost {
                true => "UPDATE hosts SET lost = $1 WHERE name = $2 AND lost IS NULL AND revoked IS NULL",
                false => "UPDATE hosts SET lost = $1 WHERE name = $2 AND lost IS NOT NULL",
            };
            let since = lost.then_some(at.as_millisecond());
            let noted = sqlx::query(text).bind(since).bind(host.as_str());
            if noted.execute(&mut *work.transaction).await?.rows_affected() > 0 {
                let state = if lost { "lost" } else { "back" };
                work.happened(Happening::of(at, "host", state, host)).await?;
            }
        }
        work.commit().await
    }
}
