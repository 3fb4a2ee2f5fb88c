//! Tokens: of hosts that may join, once, and of people and programs. Only digests are kept.

use model::access::Role;
use model::audit::Deed;
use model::{Name, Timestamp};
use sqlx::Row;
use sqlx::any::AnyRow;

use crate::audit::moment;
use crate::{Store, StoreError, StoreErrorKind};

/// What a join token grants.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct JoinGrant {
    /// The site that the host will be of.
    pub site: Name,
    /// The only host that may use it, if it is for one.
    pub host: Option<Name>,
    /// Until when.
    pub expires: Timestamp,
}

/// A token of a person or a program.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ApiToken {
    /// Names it in lists and in the audit log.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// What its holder may do.
    pub role: Role,
    /// When it was made.
    pub made: Timestamp,
    /// Until when it is good, if not for ever.
    pub expires: Option<Timestamp>,
    /// Since when it is not good any more.
    pub revoked: Option<Timestamp>,
}

pub(crate) fn named(text: String) -> Result<Name, StoreError> {
    text.try_into().map_err(|error| StoreError::corrupt("a name is none").caused_by(error))
}

fn api_token(row: &AnyRow) -> Result<ApiToken, StoreError> {
    let role: String = row.try_get("role")?;
    Ok(ApiToken {
        id: row.try_get("id")?,
        name: row.try_get("name")?,
        role: role.parse().map_err(|error| StoreError::corrupt("a token's role").caused_by(error))?,
        made: moment(row.try_get("made")?)?,
        expires: row.try_get::<Option<i64>, _>("expires")?.map(moment).transpose()?,
        revoked: row.try_get::<Option<i64>, _>("revoked")?.map(moment).transpose()?,
    })
}

impl Store {
    /// Keeps a join token by its digest (hexadecimal).
    ///
    /// # Errors
    /// When the database cannot be used.
    pub async fn invite(&self, digest: &str, grant: &JoinGrant, deed: Deed) -> Result<(), StoreError> {
        let mut work = self.work().await?;
        sqlx::query("INSERT INTO join_tokens (digest, site, host, expires) VALUES ($1, $2, $3, $4)")
            .bind(digest)
            .bind(grant.site.as_str())
            .bind(grant.host.as_ref().map(Name::as_str))
            .bind(grant.expires.as_millisecond())
            .execute(&mut *work.transaction)
            .await?;
        work.audit(deed).await?;
        work.commit().await
    }

    /// Keeps an API token by its digest (hexadecimal).
    ///
    /// # Errors
    /// [`StoreErrorKind::Conflict`] when its id or digest is taken.
    pub async fn add_api_token(&self, digest: &str, token: &ApiToken, deed: Deed) -> Result<(), StoreError> {
        let mut work = self.work().await?;
        sqlx::query(
            "INSERT INTO api_tokens (id, digest, name, role, made, expires) VALUES ($1, $2, $3, $4, $5, $6)",
        )
        .bind(&token.id)
        .bind(digest)
        .bind(&token.name)
        .bind(token.role.as_str())
        .bind(token.made.as_millisecond())
        .bind(token.expires.map(Timestamp::as_millisecond))
        .execute(&mut *work.transaction)
        .await?;
        work.audit(deed).await?;
        work.commit().await
    }

    /// The token of this digest, if it is good.
    ///
    /// # Errors
    /// [`StoreErrorKind::Denied`] for any other.
    pub async fn api_token(&self, digest: &str, now: Timestamp) -> Result<ApiToken, StoreError> {
        let denied = || StoreError::new(StoreErrorKind::Denied, "this token is not good");
        let row = sqlx::query("SELECT * FROM api_tokens WHERE digest = $1").bind(digest);
        let row = row.fetch_optional(&self.readers).await?.ok_or_else(denied)?;
        let token = api_token(&row)?;
        if token.revoked.is_some() || token.expires.is_some_and(|expires| expires <= now) {
            return Err(denied());
        }
        Ok(token)
    }

    /// All tokens of people and programs, oldest first.
    ///
    /// # Errors
    /// When the database cannot be used.
    pub async fn api_tokens(&self) -> Result<Vec<ApiToken>, StoreError> {
        let rows = sqlx::query("SELECT * FROM api_tokens ORDER BY made, id").fetch_all(&self.readers).await?;
        rows.iter().map(api_token).collect()
    }

    /// A page of tokens, oldest first: those after the one that was made then (milliseconds) and has this id.
    ///
    /// # Errors
    /// When the database cannot be used.
    pub async fn api_tokens_after(
        &self,
        after: Option<(i64, String)>,
        most: u32,
    ) -> Result<Vec<ApiToken>, StoreError> {
        let (made, id) = after.unwrap_or((i64::MIN, String::new()));
        let text =
            "SELECT * FROM api_tokens WHERE made > $1 OR (made = $1 AND id > $2) ORDER BY made, id LIMIT $3";
        let rows = sqlx::query(text).bind(made).bind(id).bind(i64::from(most));
        rows.fetch_all(&self.readers).await?.iter().map(api_token).collect()
    }

    /// A token by its id, good or not.
    ///
    /// # Errors
    /// [`StoreErrorKind::NotFound`].
    pub async fn api_token_named(&self, id: &str) -> Result<ApiToken, StoreError> {
        let row = sqlx::query("SELECT * FROM api_tokens WHERE id = $1").bind(id);
        let row = row.fetch_optional(&self.readers).await?;
        row.as_ref().map_or_else(
            || Err(StoreError::new(StoreErrorKind::NotFound, "there is no such token")),
            api_token,
        )
    }

    /// Makes a token no good. One that is none already stays so.
    ///
    /// # Errors
    /// [`StoreErrorKind::NotFound`].
    pub async fn revoke_api_token(&self, id: &str, deed: Deed) -> Result<(), StoreError> {
        let mut work = self.work().await?;
        let text = "UPDATE api_tokens SET revoked = COALESCE(revoked, $1) WHERE id = $2";
        let done = sqlx::query(text).bind(deed.at.as_millisecond()).bind(id);
        if done.execute(&mut *work.transaction).await?.rows_affected() == 0 {
            return Err(StoreError::new(StoreErrorKind::NotFound, "there is no such token"));
        }
        work.audit(deed).await?;
        work.commit().await
    }
}
