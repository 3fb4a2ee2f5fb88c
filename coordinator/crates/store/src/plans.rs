//! Plans.

use model::audit::Deed;
use model::migration::Migration;
use model::plan::{Plan, State, StepState};
use model::webhook::Happening;
use model::{Name, Timestamp};
use sqlx::Row;
use sqlx::any::AnyRow;

use crate::audit::moment;
use crate::{Page, Store, StoreError, StoreErrorKind, Work};

fn read(row: &AnyRow) -> Result<Plan, StoreError> {
    let body: String = row.try_get("body")?;
    serde_json::from_str(&body).map_err(|error| StoreError::corrupt("a plan").caused_by(error))
}

fn write(plan: &Plan) -> Result<String, StoreError> {
    serde_json::to_string(plan).map_err(|error| StoreError::corrupt("write a plan").caused_by(error))
}

fn runs(plan: &Plan) -> i64 {
    i64::from(matches!(plan.state, State::Running | State::Stopping))
}

impl Work<'_> {
    async fn plan(&mut self, id: &str) -> Result<Plan, StoreError> {
        let row = sqlx::query("SELECT body FROM plans WHERE id = $1").bind(id);
        row.fetch_optional(&mut *self.transaction).await?.as_ref().map_or_else(|| Err(no_plan()), read)
    }

    async fn put_plan(&mut self, plan: &Plan, before: State) -> Result<(), StoreError> {
        sqlx::query("UPDATE plans SET ended = $1, runs = $2, body = $3 WHERE id = $4")
            .bind(i64::from(plan.state.is_final()))
            .bind(runs(plan))
            .bind(write(plan)?)
            .bind(&plan.id)
            .execute(&mut *self.transaction)
            .await?;
        if plan.state != before {
            self.happened(Happening::plan(plan, Some(before))).await?;
        }
        Ok(())
    }
}

impl Store {
    /// A new plan.
    ///
    /// # Errors
    /// [`StoreErrorKind::Conflict`] when its id is taken.
    pub async fn add_plan(&self, plan: &Plan, deed: Deed) -> Result<(), StoreError> {
        let mut work = self.work().await?;
        sqlx::query("INSERT INTO plans (id, ended, runs, created, body) VALUES ($1, $2, $3, $4, $5)")
            .bind(&plan.id)
            .bind(i64::from(plan.state.is_final()))
            .bind(runs(plan))
            .bind(plan.created.as_millisecond())
            .bind(write(plan)?)
            .execute(&mut *work.transaction)
            .await?;
        work.happened(Happening::plan(plan, None)).await?;
        work.audit(deed).await?;
        work.commit().await
    }

    /// Changes a plan by what somebody wishes, in one step with reading it.
    ///
    /// # Errors
    /// [`StoreErrorKind::NotFound`]; what `change` refuses with, as [`StoreErrorKind::Conflict`].
    pub async fn change_plan(
        &self,
        id: &str,
        deed: Deed,
        change: impl FnOnce(&mut Plan) -> Result<(), String> + Send,
    ) -> Result<Plan, StoreError> {
        let mut work = self.work().await?;
        let mut plan = work.plan(id).await?;
        let before = plan.state;
        change(&mut plan).map_err(|why| StoreError::new(StoreErrorKind::Conflict, why))?;
        plan.changed = deed.at;
        work.put_plan(&plan, before).await?;
        work.audit(deed).await?;
        work.commit().await?;
        Ok(plan)
    }

    /// Takes in how a plan's migrations stand, in one step with reading it. None when nothing changed.
    ///
    /// # Errors
    /// [`StoreErrorKind::NotFound`].
    pub async fn update_plan(
        &self,
        id: &str,
        at: Timestamp,
        update: impl FnOnce(&mut Plan) + Send,
    ) -> Result<Option<Plan>, StoreError> {
        let mut work = self.work().await?;
        let before = work.plan(id).await?;
        let mut plan = before.clone();
        update(&mut plan);
        if plan == before {
            return Ok(None);
        }
        plan.changed = at;
        work.put_plan(&plan, before.state).await?;
        work.commit().await?;
        Ok(Some(plan))
    }

    /// Begins a step that waits: its migration is there and the step knows, or neither. False when it does not wait any
    /// more: somebody cancelled the plan, or it was begun before.
    ///
    /// # Errors
    /// [`StoreErrorKind::NotFound`]; [`StoreErrorKind::Conflict`] when the VM is moved by another one already.
    pub async fn begin_step(
        &self,
        plan: &str,
        nth: usize,
        migration: &Migration,
        deed: Deed,
    ) -> Result<bool, StoreError> {
        let mut work = self.work().await?;
        let mut plan = work.plan(plan).await?;
        let runs = plan.state == State::Running;
        let Some(step) = plan.steps.get_mut(nth).filter(|step| runs && step.state == StepState::Waiting)
        else {
            return Ok(false);
        };
        step.state = StepState::Begun;
        plan.changed = deed.at;
        work.insert_migration(migration).await?;
        let before = plan.state;
        work.put_plan(&plan, before).await?;
        work.next_intent().await?;
        work.audit(deed).await?;
        work.commit().await?;
        Ok(true)
    }

    /// One plan.
    ///
    /// # Errors
    /// [`StoreErrorKind::NotFound`].
    pub async fn plan(&self, id: &str) -> Result<Plan, StoreError> {
        let row = sqlx::query("SELECT body FROM plans WHERE id = $1").bind(id);
        row.fetch_optional(&self.readers).await?.as_ref().map_or_else(|| Err(no_plan()), read)
    }

    /// Plans whose steps are done, oldest first.
    ///
    /// # Errors
    /// When the database cannot be used.
    pub async fn plans_that_run(&self) -> Result<Vec<Plan>, StoreError> {
        let rows = sqlx::query("SELECT body FROM plans WHERE runs = 1 ORDER BY created, id");
        rows.fetch_all(&self.readers).await?.iter().map(read).collect()
    }

    /// A page of plans, newest first.
    ///
    /// # Errors
    /// When the database cannot be used.
    pub async fn plans(&self, page: &Page) -> Result<Vec<Plan>, StoreError> {
        let (created, id) = page.before.clone().unwrap_or((i64::MAX, String::new()));
        let text = "SELECT body FROM plans WHERE created < $1 OR (created = $2 AND id < $3) \
                    ORDER BY created DESC, id DESC LIMIT $4";
        let rows = sqlx::query(text).bind(created).bind(created).bind(id).bind(i64::from(page.most));
        rows.fetch_all(&self.readers).await?.iter().map(read).collect()
    }

    /// Makes a host take no VMs, or take them again.
    ///
    /// # Errors
    /// [`StoreErrorKind::NotFound`].
    pub async fn cordon(&self, host: &Name, cordoned: bool, deed: Deed) -> Result<(), StoreError> {
        let mut work = self.work().await?;
        let since = cordoned.then_some(deed.at.as_millisecond());
        let done = sqlx::query("UPDATE hosts SET cordoned = $1 WHERE name = $2");
        let done = done.bind(since).bind(host.as_str()).execute(&mut *work.transaction).await?;
        if done.rows_affected() == 0 {
            return Err(StoreError::new(StoreErrorKind::NotFound, format!("there is no host {host}")));
        }
        work.audit(deed).await?;
        work.commit().await
    }

    /// Hosts that take no VMs, with since when.
    ///
    /// # Errors
    /// When the database cannot be used.
    pub async fn cordoned(&self) -> Result<Vec<(Name, Timestamp)>, StoreError> {
        let rows = sqlx::query("SELECT name, cordoned FROM hosts WHERE cordoned IS NOT NULL ORDER BY name");
        let one = |row: &AnyRow| {
            Ok((crate::tokens::named(row.try_get("name")?)?, moment(row.try_get("cordoned")?)?))
        };
        rows.fetch_all(&self.readers).await?.iter().map(one).collect()
    }
}

fn no_plan() -> StoreError {
    StoreError::new(StoreErrorKind::NotFound, "there is no such plan")
}
