//! Links, and what was measured of them.

use model::audit::Deed;
use model::link::{Link, Measured, Standing, State};
use model::webhook::Happening;
use model::{Name, Timestamp};
use sqlx::Row;
use sqlx::any::AnyRow;

use crate::audit::moment;
use crate::{Store, StoreError, StoreErrorKind, Work};

/// Probes that are kept of each link: a day of one a minute.
pub const MOST_PROBES: u32 = 1440;
/// Links of a fleet.
const MOST_LINKS: i64 = 4096;

/// What a probe came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LinkProbe {
    /// When.
    pub at: Timestamp,
    /// What was measured; none when nothing came through.
    pub measured: Option<Measured>,
}

fn text<T: serde::Serialize>(value: &T) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| StoreError::corrupt("write a link").caused_by(error))
}

fn value<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|error| StoreError::corrupt("a link").caused_by(error))
}

fn standing(row: &AnyRow) -> Result<Standing, StoreError> {
    let (body, state): (String, String) = (row.try_get("body")?, row.try_get("state")?);
    let since: Option<i64> = row.try_get("since")?;
    let measured: Option<String> = row.try_get("measured")?;
    Ok(Standing {
        link: value(&body)?,
        state: value(&format!("{state:?}"))?,
        since: since.map(moment).transpose()?,
        measured: measured.as_deref().map(value).transpose()?,
    })
}

fn probe(row: &AnyRow) -> Result<LinkProbe, StoreError> {
    let measured: Option<String> = row.try_get("measured")?;
    Ok(LinkProbe { at: moment(row.try_get("at")?)?, measured: measured.as_deref().map(value).transpose()? })
}

fn no_link(name: &Name) -> StoreError {
    StoreError::new(StoreErrorKind::NotFound, format!("there is no link {name}"))
}

impl Work<'_> {
    async fn link(&mut self, name: &Name) -> Result<Standing, StoreError> {
        let row = sqlx::query("SELECT * FROM links WHERE name = $1").bind(name.as_str());
        row.fetch_optional(&mut *self.transaction)
            .await?
            .as_ref()
            .map_or_else(|| Err(no_link(name)), standing)
    }

    /// Probes of a link, oldest first.
    async fn probes(&mut self, name: &Name) -> Result<Vec<LinkProbe>, StoreError> {
        let rows = sqlx::query("SELECT at, measured FROM link_probes WHERE link = $1 ORDER BY at")
            .bind(name.as_str())
            .fetch_all(&mut *self.transaction)
            .await?;
        rows.iter().map(probe).collect()
    }
}

impl Store {
    /// A new link.
    ///
    /// # Errors
    /// [`StoreErrorKind::Conflict`] when there is one of this name, or there are too many.
    pub async fn add_link(&self, link: &Link, deed: Deed) -> Result<(), StoreError> {
        let mut work = self.work().await?;
        let count =
            sqlx::query("SELECT COUNT(*) AS links FROM links").fetch_one(&mut *work.transaction).await?;
        if count.try_get::<i64, _>("links")? >= MOST_LINKS {
            let why = format!("there are {MOST_LINKS} links; remove some first");
            return Err(StoreError::new(StoreErrorKind::Conflict, why));
        }
        let added = sqlx::query("INSERT INTO links (name, body, state) VALUES ($1, $2, $3)")
            .bind(link.name.as_str())
            .bind(text(link)?)
            .bind(State::Unknown.as_str())
            .execute(&mut *work.transaction)
            .await;
        added.map_err(StoreError::from).map_err(|error| match error.kind() {
            StoreErrorKind::Conflict => {
                let why = format!("there is a link {} already; change it, or choose another name", link.name);
                StoreError::new(StoreErrorKind::Conflict, why).caused_by(error)
            }
            _ => error,
        })?;
        work.next_intent().await?;
        work.audit(deed).await?;
        work.commit().await
    }

    /// Changes what operators say of a link, in one step with reading it. Its name stays.
    ///
    /// # Errors
    /// [`StoreErrorKind::NotFound`]; what `change` refuses with, as [`StoreErrorKind::Conflict`].
    pub async fn change_link(
        &self,
        name: &Name,
        deed: Deed,
        change: impl FnOnce(&mut Link) -> Result<(), String> + Send,
    ) -> Result<Standing, StoreError> {
        let mut work = self.work().await?;
        let mut standing = work.link(name).await?;
        change(&mut standing.link).map_err(|why| StoreError::new(StoreErrorKind::Conflict, why))?;
        standing.link.name = name.clone();
        sqlx::query("UPDATE links SET body = $1 WHERE name = $2")
            .bind(text(&standing.link)?)
            .bind(name.as_str())
            .execute(&mut *work.transaction)
            .await?;
        work.next_intent().await?;
        work.audit(deed).await?;
        work.commit().await?;
        Ok(standing)
    }

    /// Forgets a link and its probes.
    ///
    /// # Errors
    /// [`StoreErrorKind::NotFound`].
    pub async fn remove_link(&self, name: &Name, deed: Deed) -> Result<(), StoreError> {
        let mut work = self.work().await?;
        work.link(name).await?;
        for statement in ["DELETE FROM links WHERE name = $1", "DELETE FROM link_probes WHERE link = $1"] {
            sqlx::query(statement).bind(name.as_str()).execute(&mut *work.transaction).await?;
        }
        work.next_intent().await?;
        work.audit(deed).await?;
        work.commit().await
    }

    /// Takes in what a probe found; true when the link's state is another one now.
    ///
    /// # Errors
    /// [`StoreErrorKind::NotFound`].
    pub async fn measured(&self, name: &Name, probe: LinkProbe) -> Result<(Standing, bool), StoreError> {
        let mut work = self.work().await?;
        let mut standing = work.link(name).await?;
        let LinkProbe { at, measured } = probe;
        let kept = measured.as_ref().map(text).transpose()?;
        // Of two in one millisecond the later counts.
        sqlx::query("DELETE FROM link_probes WHERE link = $1 AND at = $2")
            .bind(name.as_str())
            .bind(at.as_millisecond())
            .execute(&mut *work.transaction)
            .await?;
        sqlx::query("INSERT INTO link_probes (link, at, measured) VALUES ($1, $2, $3)")
            .bind(name.as_str())
            .bind(at.as_millisecond())
            .bind(kept)
            .execute(&mut *work.transaction)
            .await?;
        let oldest = "DELETE FROM link_probes WHERE link = $1 AND at < \
                      (SELECT MIN(at) FROM (SELECT at FROM link_probes WHERE link = $1 ORDER BY at DESC LIMIT $2) AS kept)";
        sqlx::query(oldest)
            .bind(name.as_str())
            .bind(i64::from(MOST_PROBES))
            .execute(&mut *work.transaction)
            .await?;
        let probes: Vec<_> = work.probes(name).await?.into_iter().map(|probe| probe.measured).collect();
        let state = standing.state.next(&probes);
        let changed = state != standing.state;
        if changed {
            (standing.state, standing.since) = (state, Some(at));
            work.happened(Happening::of(at, "link", state.as_str(), name)).await?;
            work.next_intent().await?;
        }
        if let Some(mut measured) = measured {
            // The rate is tried seldom; the last one stands until the next.
            measured.rate = measured.rate.or_else(|| standing.measured.and_then(|last| last.rate));
            standing.measured = Some(measured);
        }
        sqlx::query("UPDATE links SET state = $1, since = $2, measured = $3 WHERE name = $4")
            .bind(standing.state.as_str())
            .bind(standing.since.map(Timestamp::as_millisecond))
            .bind(standing.measured.as_ref().map(text).transpose()?)
            .bind(name.as_str())
            .execute(&mut *work.transaction)
            .await?;
        work.commit().await?;
        Ok((standing, changed))
    }

    /// All links, by name.
    ///
    /// # Errors
    /// When the database cannot be used.
    pub async fn links(&self) -> Result<Vec<Standing>, StoreError> {
        let rows = sqlx::query("SELECT * FROM links ORDER BY name").fetch_all(&self.readers).await?;
        rows.iter().map(standing).collect()
    }

    /// One link.
    ///
    /// # Errors
    /// [`StoreErrorKind::NotFound`].
    pub async fn link(&self, name: &Name) -> Result<Standing, StoreError> {
        let row = sqlx::query("SELECT * FROM links WHERE name = $1").bind(name.as_str());
        row.fetch_optional(&self.readers).await?.as_ref().map_or_else(|| Err(no_link(name)), standing)
    }

    /// The last probes of a link, newest first.
    ///
    /// # Errors
    /// When the database cannot be used.
    pub async fn link_probes(&self, name: &Name, most: u32) -> Result<Vec<LinkProbe>, StoreError> {
        let rows =
            sqlx::query("SELECT at, measured FROM link_probes WHERE link = $1 ORDER BY at DESC LIMIT $2")
                .bind(name.as_str())
                .bind(i64::from(most.min(MOST_PROBES)))
                .fetch_all(&self.readers)
                .await?;
        rows.iter().map(probe).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deed(action: &str) -> Deed {
        Deed {
            at: Timestamp::UNIX_EPOCH,
            actor: "token:x".to_owned(),
            action: action.to_owned(),
            subject: "l".to_owned(),
            outcome: "done".to_owned(),
            detail: String::new(),
        }
    }

    #[tokio::test]
    async fn links_are_kept_with_a_bounded_history() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&crate::Database::Folder(folder.path().to_owned())).await.unwrap();
        let name: Name = "l".parse().unwrap();
        let mut link = Link::new(name.clone(), ["a".parse().unwrap(), "b".parse().unwrap()]);
        link.cap = Some(1000);
        store.add_link(&link, deed("add")).await.unwrap();
        let again = store.add_link(&link, deed("add")).await.unwrap_err();
        assert_eq!(again.kind(), StoreErrorKind::Conflict);
        let at = |nth: u32| Timestamp::from_millisecond(i64::from(nth)).unwrap();
        let good = |nth, rate| LinkProbe {
            at: at(nth),
            measured: Some(Measured { at: at(nth), rtt_us: 5, jitter_us: 1, loss_ppm: 0, rate }),
        };
        let (_, changed) = store.measured(&name, good(0, Some(77))).await.unwrap();
        assert!(changed);
        for nth in 1..=MOST_PROBES {
            store.measured(&name, good(nth, None)).await.unwrap();
        }
        let probes = store.link_probes(&name, u32::MAX).await.unwrap();
        assert_eq!((probes.len(), probes[0].at), (1440, at(MOST_PROBES)));
        assert_eq!(probes.last().unwrap().at, at(1), "the oldest is forgotten");
        let kept = store.link(&name).await.unwrap();
        assert_eq!((kept.state, kept.measured.unwrap().rate), (State::Up, Some(77)));
        let mut changes = 0;
        for nth in 0..4 {
            let failed = LinkProbe { at: at(MOST_PROBES + 1 + nth), measured: None };
            changes += u32::from(store.measured(&name, failed).await.unwrap().1);
        }
        let down = store.link(&name).await.unwrap();
        assert_eq!((changes, down.state, down.since), (1, State::Down, Some(at(MOST_PROBES + 3))));
        let refused = store.change_link(&name, deed("set"), |_| Err("no".to_owned())).await.unwrap_err();
        assert_eq!(refused.kind(), StoreErrorKind::Conflict);
        let changed = store.change_link(&name, deed("set"), |link| {
            (link.cap, link.name) = (None, "other".parse().unwrap());
            Ok(())
        });
        let changed = changed.await.unwrap();
        assert_eq!((changed.link.cap, changed.link.name.as_str()), (None, "l"));
        assert_eq!(store.links().await.unwrap(), [changed]);
        store.remove_link(&name, deed("remove")).await.unwrap();
        assert_eq!(store.link_probes(&name, 9).await.unwrap(), []);
        assert_eq!(store.link(&name).await.unwrap_err().kind(), StoreErrorKind::NotFound);
        assert_eq!(store.verify_audit().await.unwrap().0, 3);
    }
}
