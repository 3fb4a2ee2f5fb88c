//! Who may do what.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What a caller is to the coordinator. Each may do what those before it may.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Sees everything but secrets.
    Viewer,
    /// Moves VMs.
    Operator,
    /// Lets hosts and people in.
    Admin,
}

/// A text that is no role.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("this is no role; choose viewer, operator or admin")]
pub struct InvalidRole;

impl Role {
    /// Its name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = InvalidRole;
    fn from_str(text: &str) -> Result<Self, InvalidRole> {
        [Self::Viewer, Self::Operator, Self::Admin]
            .into_iter()
            .find(|role| role.as_str() == text)
            .ok_or(InvalidRole)
    }
}

/// What can be asked of the coordinator.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// See hosts, VMs, migrations.
    Look,
    /// Move a VM, and all that is asked of a migration.
    Migrate,
    /// End doubt about a migration: a word that can lose data.
    Resolve,
    /// Make a join token.
    InviteHost,
    /// Revoke a host's certificates.
    RevokeHost,
    /// Make or revoke an API token.
    ManageTokens,
    /// Say what links there are, or have one probed.
    ManageLinks,
    /// See webhooks and their secrets, or say whom to tell what.
    ManageWebhooks,
    /// See the audit log.
    Audit,
    /// Copy all that the coordinator remembers.
    Backup,
}

impl Action {
    /// The least that a caller must be.
    #[must_use]
    pub fn needs(self) -> Role {
        match self {
            Self::Look => Role::Viewer,
            Self::Migrate | Self::Resolve | Self::ManageLinks => Role::Operator,
            Self::InviteHost
            | Self::RevokeHost
            | Self::ManageTokens
            | Self::ManageWebhooks
            | Self::Audit
            | Self::Backup => Role::Admin,
        }
    }

    /// The name in the audit log.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Look => "look",
            Self::Migrate => "migrate",
            Self::Resolve => "resolve",
            Self::InviteHost => "invite-host",
            Self::RevokeHost => "revoke-host",
            Self::ManageTokens => "manage-tokens",
            Self::ManageLinks => "manage-links",
            Self::ManageWebhooks => "manage-webhooks",
            Self::Audit => "audit",
            Self::Backup => "backup",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_include_those_before_them() {
        use Action as A;
        let all = [
            A::Look,
            A::Migrate,
            A::Resolve,
            A::InviteHost,
            A::RevokeHost,
            A::ManageTokens,
            A::ManageLinks,
            A::ManageWebhooks,
            A::Audit,
            A::Backup,
        ];
        let may = |role: Role| all.iter().filter(|action| action.needs() <= role).count();
        assert_eq!((may(Role::Viewer), may(Role::Operator), may(Role::Admin)), (1, 4, 10));
        for role in [Role::Viewer, Role::Operator, Role::Admin] {
            assert_eq!(role.to_string().parse(), Ok(role));
        }
        assert_eq!("root".parse::<Role>(), Err(InvalidRole));
    }
}
