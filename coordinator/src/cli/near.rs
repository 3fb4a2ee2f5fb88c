//! Names that were perhaps meant.

use serde_json::Value;

use crate::client::Client;
use crate::failure::Failure;

/// How alike two names must be (Jaro-Winkler; 1 is the same). "hots-a" and "host-a" are 0.94, "db-1" and "web-1" 0.78.
const ALIKE: f64 = 0.8;
/// Names that are suggested at most.
const MOST: usize = 3;

/// Names that are like one that there is not.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Near(Vec<String>);

impl Near {
    pub(crate) fn question(&self) -> String {
        format!("did you mean {}?", self.0.join(" or "))
    }
}

/// Those that are like it, the likest first; none if none is.
pub(crate) fn to<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<Near> {
    let likeness = |known: &'a str| (strsim::jaro_winkler(name, known), known);
    let mut found: Vec<_> = known.into_iter().map(likeness).filter(|(like, _)| *like >= ALIKE).collect();
    found.sort_by(|one, other| other.0.total_cmp(&one.0).then(one.1.cmp(other.1)));
    found.dedup();
    found.truncate(MOST);
    let names: Vec<_> = found.into_iter().map(|(_, known)| known.to_owned()).collect();
    (!names.is_empty()).then_some(Near(names))
}

/// Among which names one was sought.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Among {
    /// Hosts.
    Hosts,
    /// Hosts and their sites.
    Places,
    /// Links.
    Links,
    /// VMs, by id and name.
    Vms,
    /// API tokens, by id.
    Tokens,
    /// Webhooks.
    Webhooks,
}

impl Among {
    fn known(self, client: &Client) -> Result<Vec<String>, Failure> {
        let (path, fields): (_, &[&str]) = match self {
            Self::Hosts => ("/v1/hosts", &["name"]),
            Self::Places => ("/v1/hosts", &["name", "site"]),
            Self::Links => ("/v1/links", &["name"]),
            Self::Vms => ("/v1/vms", &["id", "name"]),
            Self::Tokens => ("/v1/tokens", &["id"]),
            Self::Webhooks => ("/v1/webhooks", &["name"]),
        };
        let all = client.list(path, None)?;
        let of = |one: &Value| {
            fields.iter().filter_map(|field| one[*field].as_str().map(ToOwned::to_owned)).collect()
        };
        let mut known: Vec<String> = all.iter().flat_map(|one| -> Vec<String> { of(one) }).collect();
        known.sort();
        known.dedup();
        Ok(known)
    }
}

/// A failure to find something, with the names that were perhaps meant. Any other failure stays what it is, and so does
/// this one when there is nothing to suggest.
pub(super) fn suggest(client: &Client, failure: Failure, sought: &[(Among, &str)]) -> Failure {
    if failure.code != "not-found" {
        return failure;
    }
    for (among, name) in sought {
        // The failure at hand matters more than one to list names.
        let Ok(known) = among.known(client) else { return failure };
        if known.iter().any(|known| known == name) {
            continue;
        }
        return match to(name, known.iter().map(String::as_str)) {
            Some(near) => failure.advising(near.question()),
            None if failure.advice.is_none() => {
                let noun = match among {
                    Among::Hosts | Among::Places => "host",
                    Among::Links => "link",
                    Among::Vms => "vm",
                    Among::Tokens => "token",
                    Among::Webhooks => "webhook",
                };
                failure.advising(format!("`novaferry {noun} list` shows those that there are"))
            }
            None => failure,
        };
    }
    failure
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_of_fingers_are_recognised() {
        let known = ["host-a", "host-b", "db-1.example", "web-1"];
        let question = |name: &str| to(name, known).map(|near| near.question());
        assert_eq!(question("hots-a").unwrap(), "did you mean host-a or host-b?");
        assert_eq!(question("web1").unwrap(), "did you mean web-1?");
        assert_eq!(question("db-1").unwrap(), "did you mean db-1.example?");
        assert_eq!(question("zürich"), None);
        assert_eq!(question(""), None);
    }
}
