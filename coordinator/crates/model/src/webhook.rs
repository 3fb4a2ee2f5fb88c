//! Webhooks: whom to tell what happens, by HTTP. What is sent follows Standard Webhooks 1
//! (<https://www.standardwebhooks.com>), so that receivers check it with a library of theirs.

mod reach;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::Name;
use crate::migration::{Migration, State as MigrationState};
use crate::plan::{Plan, State as PlanState, StepState};

pub use reach::{Reach, Unreachable};

/// Longest URL.
const MOST_URL: usize = 2048;
/// Longest certificate of an own CA, PEM.
const MOST_CA: usize = 16 << 10;
/// Longest list of topics.
const MOST_TOPICS: usize = 64;

/// The topic of an event that an operator asks for, to see whether a webhook works.
const TEST: &str = "webhook.test";

/// What an operator says of a webhook.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Webhook {
    /// What people call it.
    pub name: Name,
    /// Where events are posted: a URL of HTTPS. It may hold a secret of the receiver's.
    pub url: String,
    /// Which events: `migration`, or only some as `migration.completed`. All if empty.
    #[serde(default)]
    pub on: Vec<String>,
    /// The receiver's CA (PEM) if it is none of the public ones; only this is trusted then.
    #[serde(default)]
    pub ca: Option<String>,
    /// Nothing is sent; what happens is kept for it within limits.
    #[serde(default)]
    pub paused: bool,
}

/// A webhook that makes no sense.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum InvalidWebhook {
    /// Its URL.
    #[error(transparent)]
    Url(#[from] Unreachable),
    /// Its URL is too long.
    #[error("a webhook's URL has at most {MOST_URL} characters")]
    LongUrl,
    /// Something that is not told.
    #[error("nothing is told of {topic:?}; choose of {}", topics().join(", "))]
    Topic {
        /// Which.
        topic: String,
    },
    /// Too many of them.
    #[error("a webhook has at most {MOST_TOPICS} topics")]
    Topics,
    /// Its CA.
    #[error("a webhook's CA is PEM of at most {MOST_CA} characters")]
    Ca,
}

/// All that is told.
#[must_use]
pub fn topics() -> Vec<String> {
    let migration = MigrationState::ALL.map(MigrationState::as_str);
    let plan = PlanState::ALL.map(PlanState::as_str);
    let things: [(&str, &[&str]); 4] = [
        ("migration", &migration),
        ("plan", &plan),
        ("host", &["joined", "revoked", "lost", "back"]),
        ("link", &["up", "degraded", "down"]),
    ];
    let each = things.iter().flat_map(|(thing, states)| {
        std::iter::once((*thing).to_owned()).chain(states.iter().map(move |state| format!("{thing}.{state}")))
    });
    each.collect()
}

impl Webhook {
    /// Whether it makes sense.
    ///
    /// # Errors
    /// The first thing that does not.
    pub fn check(&self, reach: Reach) -> Result<(), InvalidWebhook> {
        if self.url.len() > MOST_URL {
            return Err(InvalidWebhook::LongUrl);
        }
        reach.allows(&self.url)?;
        if self.on.len() > MOST_TOPICS {
            return Err(InvalidWebhook::Topics);
        }
        let known = topics();
        if let Some(strange) = self.on.iter().find(|topic| !known.contains(topic)) {
            return Err(InvalidWebhook::Topic { topic: strange.chars().take(64).collect() });
        }
        let pem = |text: &String| text.len() <= MOST_CA && text.contains("-----BEGIN CERTIFICATE-----");
        if !self.ca.as_ref().is_none_or(pem) {
            return Err(InvalidWebhook::Ca);
        }
        Ok(())
    }

    /// Whether it is to be told of this.
    #[must_use]
    pub fn wants(&self, topic: &str) -> bool {
        let fits = |wanted: &String| {
            topic.strip_prefix(wanted.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        self.on.is_empty() || self.on.iter().any(fits)
    }
}

/// How it goes with a webhook's deliveries.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "schema", schema(as = WebhookStanding))]
#[serde(default)]
pub struct Standing {
    /// When the receiver took something last.
    pub delivered: Option<Timestamp>,
    /// Since when it takes nothing.
    pub failing: Option<Timestamp>,
    /// Attempts since then.
    pub failures: u32,
    /// Why the last one failed.
    pub error: Option<String>,
    /// When the next one is.
    pub retry: Option<Timestamp>,
    /// Events that were given up because it took none for too long, of all topics.
    pub lost: u64,
}

/// Something that happened, before it has its place.
#[derive(Clone, PartialEq, Debug)]
pub struct Happening {
    /// When.
    pub at: Timestamp,
    /// Of [`topics`].
    pub topic: String,
    /// What is told of it.
    pub data: Value,
}

/// Something that happened, as it is sent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Event {
    /// Its place: rises with each.
    pub number: u64,
    /// The same whenever it is sent again, and no other's.
    pub id: String,
    /// Of [`topics`].
    pub topic: String,
    /// JSON: `type`, `timestamp`, `data`.
    pub body: String,
}

impl Happening {
    /// A state of a migration, after another or as its first.
    #[must_use]
    pub fn migration(migration: &Migration, before: Option<MigrationState>) -> Self {
        let Migration { id, vm, source, destination, changed, refusal, unproven, plan, link, .. } = migration;
        let data = json!({
            "id": id, "vm": vm, "source": source, "destination": destination, "state": migration.state,
            "before": before, "dry_run": migration.options.dry_run, "refusal": refusal, "unproven": unproven,
            "plan": plan, "link": link,
        });
        Self { at: *changed, topic: format!("migration.{}", migration.state.as_str()), data }
    }

    /// A state of a plan, after another or as its first.
    #[must_use]
    pub fn plan(plan: &Plan, before: Option<PlanState>) -> Self {
        let count = |state: StepState| plan.steps.iter().filter(|step| step.state == state).count();
        let data = json!({
            "id": plan.id, "state": plan.state, "before": before, "drain": plan.wanted.drain,
            "steps": {
                "all": plan.steps.len(), "done": count(StepState::Done), "failed": count(StepState::Failed),
                "skipped": count(StepState::Skipped),
            },
        });
        Self { at: plan.changed, topic: format!("plan.{}", plan.state.as_str()), data }
    }

    /// Something about a host or a link.
    #[must_use]
    pub fn of(at: Timestamp, thing: &str, state: &str, name: &Name) -> Self {
        Self { at, topic: format!("{thing}.{state}"), data: json!({ "name": name, "state": state }) }
    }

    /// An operator wants to see whether a webhook works.
    #[must_use]
    pub fn test(at: Timestamp, name: &Name) -> Self {
        Self { at, topic: TEST.to_owned(), data: json!({ "name": name }) }
    }

    /// In its place.
    #[must_use]
    pub fn numbered(self, number: u64) -> Event {
        let Self { at, topic, data } = self;
        let body = json!({ "type": topic, "timestamp": at, "data": data }).to_string();
        // A number may come again in a database that was restored from a backup, but not with all of this.
        let digest = Sha256::new().chain_update(number.to_be_bytes()).chain_update(&body).finalize();
        let id: String = digest[..16].iter().map(|byte| format!("{byte:02x}")).collect();
        let id = format!("evt_{id}");
        Event { number, id, topic, body }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn webhook(url: &str, on: &[&str]) -> Webhook {
        let on = on.iter().map(|topic| (*topic).to_owned()).collect();
        Webhook { name: "chat".parse().unwrap(), url: url.to_owned(), on, ca: None, paused: false }
    }

    #[test]
    fn topics_are_those_of_the_states() {
        let known = topics();
        for topic in ["migration", "migration.in-doubt", "plan.cancelled", "host.lost", "link.down"] {
            assert!(known.iter().any(|one| one == topic), "{topic}");
        }
        assert_eq!(known.len(), 4 + 14 + 7 + 4 + 3);
    }

    #[test]
    fn a_webhook_is_told_what_it_asked_for() {
        let all = webhook("https://example.org/x", &[]);
        let some = webhook("https://example.org/x", &["plan", "migration.lost"]);
        for (topic, wanted) in [
            ("plan.failed", true),
            ("migration.lost", true),
            ("migration.completed", false),
            ("planet", false),
        ] {
            assert!(all.wants(topic));
            assert_eq!(some.wants(topic), wanted, "{topic}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let check = |webhook: Webhook| webhook.check(Reach::Public);
        check(webhook("https://example.org/x?key=1", &["plan", "host.lost"])).unwrap();
        let strange = check(webhook("https://example.org", &["plan.good"])).unwrap_err();
        assert!(strange.to_string().contains("plan.failed"), "{strange}");
        assert_eq!(check(webhook("https://example.org", &["plan"; 65])), Err(InvalidWebhook::Topics));
        let long = format!("https://example.org/{}", "x".repeat(MOST_URL));
        assert_eq!(check(webhook(&long, &[])), Err(InvalidWebhook::LongUrl));
        let mut with_ca = webhook("https://example.org", &[]);
        with_ca.ca = Some("-----BEGIN PRIVATE KEY-----".to_owned());
        assert_eq!(check(with_ca), Err(InvalidWebhook::Ca));
    }

    #[test]
    fn an_event_keeps_its_id_and_no_other_has_it() {
        let happening = Happening::of(Timestamp::UNIX_EPOCH, "host", "lost", &"host-a".parse().unwrap());
        let event = happening.clone().numbered(7);
        assert_eq!(event, happening.clone().numbered(7));
        assert_ne!(event.id, happening.clone().numbered(8).id);
        let later = Happening { at: Timestamp::from_millisecond(1).unwrap(), ..happening };
        assert_ne!(event.id, later.numbered(7).id);
        let body: Value = serde_json::from_str(&event.body).unwrap();
        assert_eq!(
            body,
            json!({
                "type": "host.lost", "timestamp": "1970-01-01T00:00:00Z",
                "data": { "name": "host-a", "state": "lost" }
            })
        );
    }
}
