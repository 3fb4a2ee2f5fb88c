//! Reports: how expectations fared, and what was spent.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use model::Timestamp;
use model::access::Action;
use planner::report::{Accuracy, By, Charge, accuracy, charges};
use serde::Deserialize;
use utoipa::ToSchema;

use super::caller::Caller;
use super::problem::{Asked, Problem};
use crate::error::ServiceError;
use crate::fleet::Fleet;

/// Migrations that a report looks at, newest first.
const MOST: u32 = 10_000;

#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
enum ByWhat {
    #[default]
    Migration,
    Tenant,
    Link,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
enum As {
    #[default]
    Json,
    Csv,
}

#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Spent {
    /// By what it is summed.
    #[param(inline)]
    by: ByWhat,
    /// As JSON or as CSV.
    #[serde(rename = "as")]
    #[param(inline)]
    form: As,
}

/// Says how expectations fared: those of plans, and those of the sources' own measurements.
#[utoipa::path(get, path = "/v1/reports/accuracy", tag = "reports", responses((status = OK, body = Object)))]
pub(super) async fn accuracy_of(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
) -> Result<Json<Accuracy>, Problem> {
    caller.may(&fleet, Action::Look, "").await?;
    Ok(Json(accuracy(&fleet.store.ended_migrations(MOST).await?)))
}

/// Says what migrations have cost; as CSV with the columns of FOCUS if asked.
#[utoipa::path(get, path = "/v1/reports/cost", tag = "reports", params(Spent), responses((status = OK, content((Vec<Object> = "application/json"), (String = "text/csv")))))]
pub(super) async fn cost(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
    Asked(Spent { by, form }): Asked<Spent>,
) -> Result<Response, Problem> {
    caller.may(&fleet, Action::Look, "").await?;
    let by = match by {
        ByWhat::Migration => By::Migration,
        ByWhat::Tenant => By::Tenant,
        ByWhat::Link => By::Link,
    };
    let charges = charges(&fleet.store.ended_migrations(MOST).await?, by);
    if form == As::Json {
        return Ok(Json(charges).into_response());
    }
    let text = focus(&charges).map_err(ServiceError::internal)?;
    let csv = HeaderValue::from_static("text/csv; charset=utf-8");
    Ok(([(header::CONTENT_TYPE, csv)], text).into_response())
}

/// Columns of FOCUS 1.2 (FinOps Open Cost and Usage Specification) that data transfers have a value for.
const COLUMNS: [&str; 18] = [
    "BilledCost",
    "BillingAccountId",
    "BillingCurrency",
    "ChargeCategory",
    "ChargeDescription",
    "ChargeFrequency",
    "ChargePeriodEnd",
    "ChargePeriodStart",
    "ConsumedQuantity",
    "ConsumedUnit",
    "EffectiveCost",
    "ListCost",
    "ProviderName",
    "ResourceId",
    "ServiceCategory",
    "ServiceName",
    "SubAccountId",
    "Tags",
];

fn focus(charges: &[Charge]) -> Result<Vec<u8>, Box<dyn std::error::Error + Send + Sync>> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(COLUMNS)?;
    for charge in charges {
        let amount = format!("{}.{:06}", charge.cost_micros / 1_000_000, charge.cost_micros % 1_000_000);
        let gigabytes = format!("{}.{:09}", charge.bytes / 1_000_000_000, charge.bytes % 1_000_000_000);
        let link = charge.link.as_ref().map_or("", model::Name::as_str);
        let migrations = charge.migrations;
        let tags = serde_json::json!({ "novaferry.link": link, "novaferry.migration": charge.migration });
        writer.write_record([
            amount.as_str(),
            "novaferry",
            &charge.currency,
            "Usage",
            &format!("Data of {migrations} migrations"),
            "Usage-Based",
            &instant(charge.to),
            &instant(charge.from),
            &gigabytes,
            "GB",
            &amount,
            &amount,
            "novaferry",
            &cell(charge.vm.as_deref().unwrap_or_default()),
            "Networking",
            if link.is_empty() { "direct" } else { link },
            &cell(charge.tenant.as_deref().unwrap_or_default()),
            &tags.to_string(),
        ])?;
    }
    Ok(writer.into_inner().map_err(|error| error.into_error())?)
}

/// Whole seconds, as FOCUS writes times.
fn instant(time: Timestamp) -> String {
    Timestamp::from_second(time.as_second()).unwrap_or(time).to_string()
}

/// A text from outside that no spreadsheet takes for a formula.
fn cell(text: &str) -> String {
    let formula = text.starts_with(['=', '+', '-', '@', '\t', '\r']);
    if formula { format!("'{text}") } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_charge_is_a_row_of_focus() {
        let charge = Charge {
            vm: Some("=cmd|' /C calc'!A0,\"x\"".to_owned()),
            migration: Some("ab".to_owned()),
            tenant: Some("acme".to_owned()),
            link: Some("vpn".parse().unwrap()),
            from: Timestamp::UNIX_EPOCH,
            to: Timestamp::from_millisecond(1500).unwrap(),
            migrations: 1,
            bytes: 1_500_000_000,
            cost_micros: 135_000,
            currency: "USD".to_owned(),
        };
        let text = focus(&[charge]).unwrap();
        let mut rows = csv::Reader::from_reader(&text[..]);
        let head = rows.headers().unwrap().clone();
        assert_eq!(head.iter().collect::<Vec<_>>(), COLUMNS);
        let row = rows.records().next().unwrap().unwrap();
        let of = |column: &str| &row[head.iter().position(|name| name == column).unwrap()];
        assert_eq!(
            (of("BilledCost"), of("BillingCurrency"), of("ConsumedQuantity")),
            ("0.135000", "USD", "1.500000000")
        );
        assert_eq!(
            (of("ChargePeriodStart"), of("ChargePeriodEnd")),
            ("1970-01-01T00:00:00Z", "1970-01-01T00:00:01Z")
        );
        assert!(of("ResourceId").starts_with("'="), "{}", of("ResourceId"));
    }
}
