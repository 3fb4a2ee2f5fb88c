//! Hosts and their certificates.

use model::audit::Deed;
use model::host::{Host, Observed};
use model::webhook::Happening;
use model::{Name, Timestamp};
use sqlx::Row;
use sqlx::any::AnyRow;

use crate::audit::moment;
use crate::tokens::named;
use crate::{JoinGrant, Store, StoreError, StoreErrorKind, Work};

/// A certificate that is about to be signed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Certificate {
    /// 32 hexadecimal digits.
    pub serial: String,
    /// For whom.
    pub host: Name,
    /// End of its validity.
    pub not_after: Timestamp,
}

/// A certificate that belongs on the list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RevokedCertificate {
    /// 32 hexadecimal digits.
    pub serial: String,
    /// Since when.
    pub since: Timestamp,
}

fn host(row: &AnyRow) -> Result<Host, StoreError> {
    let observed: Option<String> = row.try_get("observed")?;
    let observed = observed.map(|text| serde_json::from_str::<Observed>(&text)).transpose();
    Ok(Host {
        name: named(row.try_get("name")?)?,
        site: named(row.try_get("site")?)?,
        joined: moment(row.try_get("joined")?)?,
        revoked: row.try_get::<Option<i64>, _>("revoked")?.map(moment).transpose()?,
        seen: row.try_get::<Option<i64>, _>("seen")?.map(moment).transpose()?,
        observed: observed.map_err(|error| StoreError::corrupt("what a host said").caused_by(error))?,
    })
}

impl Work<'_> {
    pub(crate) async fn add_certificate(&mut self, certificate: &Certificate) -> Result<(), StoreError> {
        sqlx::query("INSERT INTO certificates (serial, host, not_after) VALUES ($1, $2, $3)")
            .bind(&certificate.serial)
            .bind(certificate.host.as_str())
            .bind(certificate.not_after.as_millisecond())
            .execute(&mut *self.transaction)
            .await?;
        Ok(())
    }
}

impl Store {
    /// Uses a join token up: the host is of the fleet, and its certificate may be signed. A host joins again by a token
    /// for it alone, and keeps what is known of it.
    ///
    /// # Errors
    /// [`StoreErrorKind::Denied`] when the token is unknown, used, too old or another host's;
    /// [`StoreErrorKind::Conflict`] when the host was revoked, or is there and the token is for any.
    pub async fn join(
        &self,
        digest: &str,
        certificate: &Certificate,
        deed: Deed,
    ) -> Result<JoinGrant, StoreError> {
        let (name, now) = (certificate.host.as_str(), deed.at);
        let _changing = self.roster.changing([&certificate.host]);
        let mut work = self.work().await?;
        let denied = || StoreError::new(StoreErrorKind::Denied, "this join token is not good");
        let row = sqlx::query("SELECT * FROM join_tokens WHERE digest = $1").bind(digest);
        let row = row.fetch_optional(&mut *work.transaction).await?.ok_or_else(denied)?;
        let grant = JoinGrant {
            site: named(row.try_get("site")?)?,
            host: row.try_get::<Option<String>, _>("host")?.map(named).transpose()?,
            expires: moment(row.try_get("expires")?)?,
        };
        let used = row.try_get::<Option<i64>, _>("used")?.is_some();
        if used || grant.expires <= now || grant.host.as_ref().is_some_and(|host| host != &certificate.host) {
            return Err(denied());
        }
        let known = sqlx::query("SELECT revoked FROM hosts WHERE name = $1").bind(name);
        let known = known.fetch_optional(&mut *work.transaction).await?;
        if let Some(row) = known {
            if row.try_get::<Option<i64>, _>("revoked")?.is_some() {
                let why = format!("host {name} was revoked; choose another name");
                return Err(StoreError::new(StoreErrorKind::Conflict, why));
            }
            // Else whoever has any token could take any host's name.
            if grant.host.is_none() {
                let why = format!(
                    "there is a host {name}; choose another name, or use a token that is for it alone"
                );
                return Err(StoreError::new(StoreErrorKind::Conflict, why));
            }
        }
        sqlx::query("UPDATE join_tokens SET used = $1, used_by = $2 WHERE digest = $3")
            .bind(now.as_millisecond())
            .bind(name)
            .bind(digest)
            .execute(&mut *work.transaction)
            .await?;
        let text = "INSERT INTO hosts (name, site, joined) VALUES ($1, $2, $3) \
                    ON CONFLICT (name) DO UPDATE SET site = excluded.site";
        sqlx::query(text)
            .bind(name)
            .bind(grant.site.as_str())
            .bind(now.as_millisecond())
            .execute(&mut *work.transaction)
            .await?;
        work.add_certificate(certificate).await?;
        work.happened(Happening::of(now, "host", "joined", &certificate.host)).await?;
        work.audit(deed).await?;
        work.commit().await?;
        Ok(grant)
    }

    /// Notes that a host's next certificate is about to be signed.
    ///
    /// # Errors
    /// [`StoreErrorKind::Denied`] when the host is unknown or revoked.
    pub async fn renew(&self, certificate: &Certificate, deed: Deed) -> Result<(), StoreError> {
        let mut work = self.work().await?;
        let row = sqlx::query("SELECT revoked FROM hosts WHERE name = $1").bind(certificate.host.as_str());
        let row = row.fetch_optional(&mut *work.transaction).await?;
        let good = match row {
            Some(row) => row.try_get::<Option<i64>, _>("revoked")?.is_none(),
            None => false,
        };
        if !good {
            return Err(StoreError::new(StoreErrorKind::Denied, "this host is not of the fleet"));
        }
        work.add_certificate(certificate).await?;
        work.audit(deed).await?;
        work.commit().await
    }

    /// Revokes a host with all its certificates.
    ///
    /// # Errors
    /// [`StoreErrorKind::NotFound`].
    pub async fn revoke_host(&self, name: &Name, deed: Deed) -> Result<(), StoreError> {
        let _changing = self.roster.changing([name]);
        let mut work = self.work().await?;
        let at = deed.at.as_millisecond();
        let before = sqlx::query("SELECT 1 AS good FROM hosts WHERE name = $1 AND revoked IS NULL");
        let before = before.bind(name.as_str()).fetch_optional(&mut *work.transaction).await?;
        let done = sqlx::query("UPDATE hosts SET revoked = COALESCE(revoked, $1) WHERE name = $2");
        let done = done.bind(at).bind(name.as_str()).execute(&mut *work.transaction).await?;
        if done.rows_affected() == 0 {
            return Err(no_host(name));
        }
        sqlx::query("UPDATE certificates SET revoked = COALESCE(revoked, $1) WHERE host = $2")
            .bind(at)
            .bind(name.as_str())
            .execute(&mut *work.transaction)
            .await?;
        if before.is_some() {
            work.happened(Happening::of(deed.at, "host", "revoked", name)).await?;
        }
        work.audit(deed).await?;
        work.commit().await
    }

    /// Certificates that belong on the list: revoked, and still valid otherwise.
    ///
    /// # Errors
    /// When the database cannot be used.
    pub async fn revoked_certificates(&self, now: Timestamp) -> Result<Vec<RevokedCertificate>, StoreError> {
        let text = "SELECT serial, revoked FROM certificates WHERE revoked IS NOT NULL AND not_after > $1 ORDER BY serial";
        let rows = sqlx::query(text).bind(now.as_millisecond()).fetch_all(&self.readers).await?;
        let one = |row: &AnyRow| {
            Ok(RevokedCertificate { serial: row.try_get("serial")?, since: moment(row.try_get("revoked")?)? })
        };
        rows.iter().map(one).collect()
    }

    /// Whether a certificate was issued here and is not revoked.
    ///
    /// # Errors
    /// When the database cannot be used.
    pub async fn is_good_certificate(&self, serial: &str) -> Result<bool, StoreError> {
        let row = sqlx::query("SELECT 1 AS good FROM certificates WHERE serial = $1 AND revoked IS NULL");
        Ok(row.bind(serial).fetch_optional(&self.readers).await?.is_some())
    }

    /// All hosts by name.
    ///
    /// # Errors
    /// When the database cannot be used.
    pub async fn hosts(&self) -> Result<Vec<Host>, StoreError> {
        let rows = sqlx::query("SELECT * FROM hosts ORDER BY name").fetch_all(&self.readers).await?;
        rows.iter().map(host).collect()
    }

    /// One host.
    ///
    /// # Errors
    /// [`StoreErrorKind::NotFound`].
    pub async fn host(&self, name: &Name) -> Result<Host, StoreError> {
        let row = sqlx::query("SELECT * FROM hosts WHERE name = $1").bind(name.as_str());
        row.fetch_optional(&self.readers).await?.as_ref().map_or_else(|| Err(no_host(name)), host)
    }

    /// Keeps what a host said, unless that is known: a fleet that comes back says it all again.
    ///
    /// # Errors
    /// When the database cannot be used.
    pub async fn observe(&self, name: &Name, observed: &Observed, at: Timestamp) -> Result<(), StoreError> {
        let text = serde_json::to_string(observed)
            .map_err(|error| StoreError::corrupt("write what a host said").caused_by(error))?;
        let known = sqlx::query("SELECT observed FROM hosts WHERE name = $1").bind(name.as_str());
        let known = known.fetch_optional(&self.readers).await?;
        let known: Option<String> = known.map(|row| row.try_get("observed")).transpose()?.flatten();
        if known.as_ref() == Some(&text) {
            return Ok(());
        }
        let _changing = self.roster.changing([name]);
        let mut work = self.work().await?;
        sqlx::query("UPDATE hosts SET observed = $1, seen = $2 WHERE name = $3")
            .bind(text)
            .bind(at.as_millisecond())
            .bind(name.as_str())
            .execute(&mut *work.transaction)
            .await?;
        work.commit().await
    }

    /// Notes when hosts were heard of last.
    ///
    /// # Errors
    /// When the database cannot be used.
    pub async fn saw(&self, hosts: &[(Name, Timestamp)]) -> Result<(), StoreError> {
        if hosts.is_empty() {
            return Ok(());
        }
        let _changing = self.roster.changing(hosts.iter().map(|(name, _)| name));
        let mut work = self.work().await?;
        for (name, at) in hosts {
            sqlx::query("UPDATE hosts SET seen = $1 WHERE name = $2")
                .bind(at.as_millisecond())
                .bind(name.as_str())
                .execute(&mut *work.transaction)
                .await?;
        }
        work.commit().await
    }
}

fn no_host(name: &Name) -> StoreError {
    StoreError::new(StoreErrorKind::NotFound, format!("there is no host {name}"))
}
