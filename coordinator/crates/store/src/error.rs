//! Why something could not be remembered or looked up.

use std::error::Error;
use std::fmt;

/// What to do about it is decided by this.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum StoreErrorKind {
    /// Another process uses the database.
    Busy,
    /// There is no such thing.
    NotFound,
    /// It is there already, or something stands against it.
    Conflict,
    /// A token that is unknown, used, revoked or too old. Which of these is not said to whoever shows it.
    Denied,
    /// A newer release has used the database.
    Newer,
    /// What is stored makes no sense.
    Corrupt,
    /// The database or its folder cannot be used.
    Unusable,
}

/// An error of the store.
#[derive(Debug)]
pub struct StoreError {
    kind: StoreErrorKind,
    what: String,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl StoreError {
    pub(crate) fn new(kind: StoreErrorKind, what: impl Into<String>) -> Self {
        Self { kind, what: what.into(), source: None }
    }

    pub(crate) fn unusable(what: impl Into<String>) -> Self {
        Self::new(StoreErrorKind::Unusable, what)
    }

    pub(crate) fn corrupt(what: impl Into<String>) -> Self {
        Self::new(StoreErrorKind::Corrupt, what)
    }

    pub(crate) fn caused_by(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> StoreErrorKind {
        self.kind
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl Error for StoreError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        let unique = matches!(&error, sqlx::Error::Database(error) if error.is_unique_violation());
        if unique {
            return Self::new(StoreErrorKind::Conflict, "it is there already").caused_by(error);
        }
        Self::unusable("the database cannot be used").caused_by(error)
    }
}

impl From<sqlx::migrate::MigrateError> for StoreError {
    fn from(error: sqlx::migrate::MigrateError) -> Self {
        use sqlx::migrate::MigrateError as E;
        match error {
            E::VersionMissing(_) | E::VersionTooNew(..) => Self::new(
                StoreErrorKind::Newer,
                "a newer release has used this database; start that release, or restore a backup of before",
            ),
            _ => Self::unusable("the database's schema cannot be brought up to date"),
        }
        .caused_by(error)
    }
}
