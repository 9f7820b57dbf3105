//! Records in SQLite. Each call is one transaction.

use super::{
    SqliteStore,
    db::Failure,
    records::{after, decode, encode, fetch_count, get, get_all, int, not_found, now, page},
};
use crate::{FunctionStore, NewVersion, Page, Precondition, Servable, StoreError, function::TenantCounts, function::what};
use async_trait::async_trait;
use hearth_model::{
    BuildKey, Container, ContainerPath, Function, FunctionPath, FunctionVersion, ModuleRecord, Tenant, TenantName, Token,
    TokenHash, VersionNumber, VersionStatus, limits,
};
use rusqlite::{Connection, OptionalExtension, params};

fn tenant(db: &Connection, name: &str) -> Result<Option<Tenant>, Failure> {
    get(db, || what("tenant", name), "SELECT doc FROM tenants WHERE name = ?1", [name])
}

fn container(db: &Connection, path: &ContainerPath) -> Result<Option<Container>, Failure> {
    get(
        db,
        || what("container", path),
        "SELECT doc FROM containers WHERE tenant = ?1 AND name = ?2",
        [path.tenant.as_str(), path.container.as_str()],
    )
}

fn function(db: &Connection, path: &FunctionPath) -> Result<Option<Function>, Failure> {
    get(
        db,
        || what("function", path),
        "SELECT doc FROM functions WHERE tenant = ?1 AND container = ?2 AND name = ?3",
        [path.tenant.as_str(), path.container.as_str(), path.function.as_str()],
    )
}

fn version(db: &Connection, path: &FunctionPath, version: VersionNumber) -> Result<Option<FunctionVersion>, Failure> {
    get(
        db,
        || what("version", format!("{path} {version}")),
        "SELECT doc FROM versions WHERE tenant = ?1 AND container = ?2 AND function = ?3 AND version = ?4",
        params![path.tenant.as_str(), path.container.as_str(), path.function.as_str(), int(version.0)],
    )
}

fn write_function(db: &Connection, function: &Function) -> Result<(), Failure> {
    let doc = encode("function", function)?;
    db.prepare_cached(
        "INSERT OR REPLACE INTO functions (tenant, container, name, generation, live, latest, doc) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    )?
    .execute(params![
        function.path.tenant.as_str(),
        function.path.container.as_str(),
        function.path.function.as_str(),
        int(function.generation),
        function.live.map(|v| int(v.0)),
        int(function.latest.0),
        doc
    ])?;
    Ok(())
}

fn write_version(db: &Connection, version: &FunctionVersion) -> Result<(), Failure> {
    let doc = encode("version", version)?;
    let building = matches!(version.status, VersionStatus::Building);
    let path = &version.path;
    db.prepare_cached(
        "INSERT OR REPLACE INTO versions (tenant, container, function, version, building, doc) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
    )?
    .execute(params![
        path.tenant.as_str(),
        path.container.as_str(),
        path.function.as_str(),
        int(version.version.0),
        building,
        doc
    ])?;
    Ok(())
}

fn drop_version(db: &Connection, path: &FunctionPath, version: u64) -> Result<(), Failure> {
    for table in ["versions", "version_modules"] {
        db.prepare_cached(&format!("DELETE FROM {table} WHERE tenant = ?1 AND container = ?2 AND function = ?3 AND version = ?4"))?
            .execute(params![path.tenant.as_str(), path.container.as_str(), path.function.as_str(), int(version)])?;
    }
    Ok(())
}

/// Drops what is beyond the number of versions kept: the oldest first, never the live one.
fn prune(db: &Connection, function: &Function) -> Result<(), Failure> {
    let path = &function.path;
    let mut statement = db.prepare_cached(
        "SELECT version FROM versions WHERE tenant = ?1 AND container = ?2 AND function = ?3 AND version IS NOT ?4 ORDER BY version DESC LIMIT -1 OFFSET ?5",
    )?;
    let kept = limits::VERSIONS_KEPT_MAX - usize::from(function.live.is_some());
    let old = statement
        .query_map(
            params![
                path.tenant.as_str(),
                path.container.as_str(),
                path.function.as_str(),
                function.live.map(|v| int(v.0)),
                int(kept as u64)
            ],
            |r| r.get::<_, i64>(0),
        )?
        .collect::<Result<Vec<_>, _>>()?;
    for version in old {
        drop_version(db, path, version.unsigned_abs())?;
    }
    Ok(())
}

fn create_version(
    db: &Connection,
    path: &FunctionPath,
    new: NewVersion,
    precondition: Precondition,
) -> Result<(Function, FunctionVersion), Failure> {
    let now = now();
    if container(db, &path.container_path())?.is_none() {
        return Err(not_found(what("container", path.container_path())));
    }
    let existing = function(db, path)?;
    precondition.check(&what("function", path), existing.as_ref().map(|f| f.generation))?;
    let number = VersionNumber(existing.as_ref().map_or(1, |f| f.latest.0 + 1));
    let version = FunctionVersion {
        path: path.clone(),
        version: number,
        status: new.status,
        code: new.code,
        main: new.main,
        model: new.model,
        timeout_ms: new.timeout_ms,
        dependencies: new.dependencies,
        modules: new.modules,
        env: new.env,
        secrets: new.secrets,
        created_at: now,
    };
    let live = if version.status == VersionStatus::Ready { Some(number) } else { existing.as_ref().and_then(|f| f.live) };
    let function = Function {
        path: path.clone(),
        live,
        latest: number,
        generation: existing.as_ref().map_or(1, |f| f.generation + 1),
        created_at: existing.as_ref().map_or(now, |f| f.created_at),
        updated_at: now,
    };
    write_version(db, &version)?;
    for module in &version.modules {
        db.prepare_cached(
            "INSERT OR IGNORE INTO version_modules (key, tenant, container, function, version) VALUES (?1, ?2, ?3, ?4, ?5)",
        )?
        .execute(params![
            module.build.0,
            path.tenant.as_str(),
            path.container.as_str(),
            path.function.as_str(),
            int(number.0)
        ])?;
    }
    write_function(db, &function)?;
    prune(db, &function)?;
    Ok((function, version))
}

fn settle_version(db: &Connection, path: &FunctionPath, number: VersionNumber, status: VersionStatus) -> Result<Function, Failure> {
    let mut head = function(db, path)?.ok_or_else(|| not_found(what("function", path)))?;
    let mut version = version(db, path, number)?.ok_or_else(|| not_found(what("version", format!("{path} {number}"))))?;
    if version.status != VersionStatus::Building || status == VersionStatus::Building {
        return Ok(head);
    }
    let ready = status == VersionStatus::Ready;
    version.status = status;
    write_version(db, &version)?;
    // A newer version that is live already, by its own settling or by a rollback, is what the tenant wants.
    let pinned = head.live.is_some_and(|live| live > number) || rolled_back_since(db, path, number)?;
    if ready && !pinned {
        head.live = Some(number);
    }
    head.generation += 1;
    head.updated_at = now();
    write_function(db, &head)?;
    Ok(head)
}

/// Whether somebody chose the live version by hand after version `number` was made.
fn rolled_back_since(db: &Connection, path: &FunctionPath, number: VersionNumber) -> Result<bool, Failure> {
    let chosen: Option<Option<i64>> = db
        .prepare_cached("SELECT chosen_after FROM rollbacks WHERE tenant = ?1 AND container = ?2 AND function = ?3")?
        .query_row([path.tenant.as_str(), path.container.as_str(), path.function.as_str()], |r| r.get(0))
        .optional()?;
    Ok(chosen.flatten().is_some_and(|latest| latest.unsigned_abs() >= number.0))
}

fn set_live(db: &Connection, path: &FunctionPath, number: VersionNumber, precondition: Precondition) -> Result<Function, Failure> {
    let mut head = function(db, path)?.ok_or_else(|| not_found(what("function", path)))?;
    precondition.check(&what("function", path), Some(head.generation))?;
    match version(db, path, number)? {
        Some(version) if version.status == VersionStatus::Ready => {}
        _ => return Err(not_found(what("ready version", format!("{path} {number}")))),
    }
    head.live = Some(number);
    head.generation += 1;
    head.updated_at = now();
    write_function(db, &head)?;
    // Versions that were still building when the tenant chose must not take its place when they are done.
    db.prepare_cached("INSERT OR REPLACE INTO rollbacks (tenant, container, function, chosen_after) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![path.tenant.as_str(), path.container.as_str(), path.function.as_str(), int(head.latest.0)])?;
    Ok(head)
}

fn delete_function(db: &Connection, path: &FunctionPath, precondition: Precondition) -> Result<(), Failure> {
    let head = function(db, path)?.ok_or_else(|| not_found(what("function", path)))?;
    precondition.check(&what("function", path), Some(head.generation))?;
    let key = [path.tenant.as_str(), path.container.as_str(), path.function.as_str()];
    db.execute("DELETE FROM functions WHERE tenant = ?1 AND container = ?2 AND name = ?3", key)?;
    for table in ["versions", "version_modules", "documents", "rollbacks"] {
        db.execute(&format!("DELETE FROM {table} WHERE tenant = ?1 AND container = ?2 AND function = ?3"), key)?;
    }
    Ok(())
}

fn put_module(db: &Connection, record: &ModuleRecord, expected: Option<&ModuleRecord>) -> Result<bool, Failure> {
    let found: Option<ModuleRecord> =
        get(db, || what("module", &record.key.0), "SELECT doc FROM modules WHERE key = ?1", [record.key.0.as_str()])?;
    let same = match (&found, expected) {
        (None, None) => true,
        (Some(found), Some(expected)) => {
            (found.epoch, found.attempts, &found.state) == (expected.epoch, expected.attempts, &expected.state)
        }
        _ => false,
    };
    if same {
        let doc = encode("module", record)?;
        db.prepare_cached("INSERT OR REPLACE INTO modules (key, name, version, doc) VALUES (?1, ?2, ?3, ?4)")?.execute(params![
            record.key.0,
            record.spec.name.as_str(),
            record.spec.version,
            doc
        ])?;
    }
    Ok(same)
}

fn count(db: &Connection, sql: &str, params: impl rusqlite::Params) -> Result<u64, Failure> {
    Ok(db.prepare_cached(sql)?.query_row(params, |r| r.get::<_, i64>(0))?.unsigned_abs())
}

#[async_trait]
impl FunctionStore for SqliteStore {
    async fn ping(&self) -> Result<(), StoreError> {
        self.db.read("ping", |db| Ok(db.query_row("SELECT 1", [], |_| Ok(()))?)).await
    }

    async fn put_tenant(&self, mut tenant: Tenant, precondition: Precondition) -> Result<Tenant, StoreError> {
        self.db
            .write("put_tenant", move |db| {
                let existing = self::tenant(db, tenant.name.as_str())?;
                precondition.check(&what("tenant", &tenant.name), existing.as_ref().map(|t| t.generation))?;
                tenant.generation = existing.as_ref().map_or(1, |t| t.generation + 1);
                tenant.created_at = existing.as_ref().map_or_else(now, |t| t.created_at);
                let doc = encode("tenant", &tenant)?;
                db.prepare_cached("INSERT OR REPLACE INTO tenants (name, generation, doc) VALUES (?1, ?2, ?3)")?
                    .execute(params![tenant.name.as_str(), int(tenant.generation), doc])?;
                Ok(tenant)
            })
            .await
    }

    async fn get_tenant(&self, tenant: &TenantName) -> Result<Option<Tenant>, StoreError> {
        let name = tenant.clone();
        self.db.read("get_tenant", move |db| self::tenant(db, name.as_str())).await
    }

    async fn delete_tenant(&self, tenant: &TenantName, precondition: Precondition) -> Result<(), StoreError> {
        let name = tenant.clone();
        self.db
            .write("delete_tenant", move |db| {
                let existing = self::tenant(db, name.as_str())?.ok_or_else(|| not_found(what("tenant", &name)))?;
                precondition.check(&what("tenant", &name), Some(existing.generation))?;
                if count(db, "SELECT count(*) FROM containers WHERE tenant = ?1", [name.as_str()])? > 0 {
                    return Err(StoreError::NotEmpty { what: what("tenant", &name) }.into());
                }
                db.execute("DELETE FROM tenants WHERE name = ?1", [name.as_str()])?;
                db.execute("DELETE FROM tokens WHERE tenant = ?1", [name.as_str()])?;
                Ok(())
            })
            .await
    }

    async fn list_tenants(&self, cursor: Option<&str>, limit: usize) -> Result<Page<Tenant>, StoreError> {
        let (after, (limit, fetch)) = (after(cursor)?, fetch_count(limit));
        self.db
            .read("list_tenants", move |db| {
                let items =
                    get_all(db, "tenant", "SELECT doc FROM tenants WHERE name > ?1 ORDER BY name LIMIT ?2", params![after, fetch])?;
                Ok(page(items, limit, |t: &Tenant| t.name.to_string()))
            })
            .await
    }

    async fn put_container(&self, mut container: Container, precondition: Precondition) -> Result<Container, StoreError> {
        self.db
            .write("put_container", move |db| {
                if self::tenant(db, container.tenant.as_str())?.is_none() {
                    return Err(not_found(what("tenant", &container.tenant)));
                }
                let path = container.path();
                let existing = self::container(db, &path)?;
                precondition.check(&what("container", &path), existing.as_ref().map(|c| c.generation))?;
                container.generation = existing.as_ref().map_or(1, |c| c.generation + 1);
                container.created_at = existing.as_ref().map_or_else(now, |c| c.created_at);
                let doc = encode("container", &container)?;
                db.prepare_cached("INSERT OR REPLACE INTO containers (tenant, name, generation, doc) VALUES (?1, ?2, ?3, ?4)")?
                    .execute(params![container.tenant.as_str(), container.name.as_str(), int(container.generation), doc])?;
                Ok(container)
            })
            .await
    }

    async fn get_container(&self, path: &ContainerPath) -> Result<Option<Container>, StoreError> {
        let path = path.clone();
        self.db.read("get_container", move |db| container(db, &path)).await
    }

    async fn delete_container(&self, path: &ContainerPath, precondition: Precondition) -> Result<(), StoreError> {
        let path = path.clone();
        self.db
            .write("delete_container", move |db| {
                let existing = container(db, &path)?.ok_or_else(|| not_found(what("container", &path)))?;
                precondition.check(&what("container", &path), Some(existing.generation))?;
                let key = [path.tenant.as_str(), path.container.as_str()];
                if count(db, "SELECT count(*) FROM functions WHERE tenant = ?1 AND container = ?2", key)? > 0 {
                    return Err(StoreError::NotEmpty { what: what("container", &path) }.into());
                }
                db.execute("DELETE FROM containers WHERE tenant = ?1 AND name = ?2", key)?;
                Ok(())
            })
            .await
    }

    async fn list_containers(
        &self,
        tenant: &TenantName,
        cursor: Option<&str>,
        limit: usize,
    ) -> Result<Page<Container>, StoreError> {
        let (tenant, after, (limit, fetch)) = (tenant.clone(), after(cursor)?, fetch_count(limit));
        self.db
            .read("list_containers", move |db| {
                let sql = "SELECT doc FROM containers WHERE tenant = ?1 AND name > ?2 ORDER BY name LIMIT ?3";
                let items = get_all(db, "container", sql, params![tenant.as_str(), after, fetch])?;
                Ok(page(items, limit, |c: &Container| c.name.to_string()))
            })
            .await
    }

    async fn create_version(
        &self,
        path: &FunctionPath,
        new: NewVersion,
        precondition: Precondition,
    ) -> Result<(Function, FunctionVersion), StoreError> {
        let path = path.clone();
        self.db.write("create_version", move |db| create_version(db, &path, new, precondition)).await
    }

    async fn settle_version(
        &self,
        path: &FunctionPath,
        version: VersionNumber,
        status: VersionStatus,
    ) -> Result<Function, StoreError> {
        let path = path.clone();
        self.db.write("settle_version", move |db| settle_version(db, &path, version, status)).await
    }

    async fn set_live(
        &self,
        path: &FunctionPath,
        version: VersionNumber,
        precondition: Precondition,
    ) -> Result<Function, StoreError> {
        let path = path.clone();
        self.db.write("set_live", move |db| set_live(db, &path, version, precondition)).await
    }

    async fn get_function(&self, path: &FunctionPath) -> Result<Option<Function>, StoreError> {
        let path = path.clone();
        self.db.read("get_function", move |db| function(db, &path)).await
    }

    async fn get_version(&self, path: &FunctionPath, version: VersionNumber) -> Result<Option<FunctionVersion>, StoreError> {
        let path = path.clone();
        self.db.read("get_version", move |db| self::version(db, &path, version)).await
    }

    async fn get_servable(&self, path: &FunctionPath) -> Result<Option<Servable>, StoreError> {
        let path = path.clone();
        self.db
            .read("get_servable", move |db| {
                // One transaction, so that the parts belong together.
                let db = db.unchecked_transaction()?;
                let (Some(tenant), Some(container), Some(function)) =
                    (tenant(&db, path.tenant.as_str())?, container(&db, &path.container_path())?, function(&db, &path)?)
                else {
                    return Ok(None);
                };
                let live = match function.live {
                    Some(live) => version(&db, &path, live)?,
                    None => None,
                };
                Ok(Some(Servable { tenant, container, function, live }))
            })
            .await
    }

    async fn delete_function(&self, path: &FunctionPath, precondition: Precondition) -> Result<(), StoreError> {
        let path = path.clone();
        self.db.write("delete_function", move |db| delete_function(db, &path, precondition)).await
    }

    async fn list_functions(&self, path: &ContainerPath, cursor: Option<&str>, limit: usize) -> Result<Page<Function>, StoreError> {
        let (path, after, (limit, fetch)) = (path.clone(), after(cursor)?, fetch_count(limit));
        self.db
            .read("list_functions", move |db| {
                let sql = "SELECT doc FROM functions WHERE tenant = ?1 AND container = ?2 AND name > ?3 ORDER BY name LIMIT ?4";
                let items = get_all(db, "function", sql, params![path.tenant.as_str(), path.container.as_str(), after, fetch])?;
                Ok(page(items, limit, |f: &Function| f.path.function.to_string()))
            })
            .await
    }

    async fn list_versions(
        &self,
        path: &FunctionPath,
        cursor: Option<&str>,
        limit: usize,
    ) -> Result<Page<FunctionVersion>, StoreError> {
        let (path, after, (limit, fetch)) = (path.clone(), after(cursor)?, fetch_count(limit));
        let before: i64 = if after.is_empty() {
            i64::MAX
        } else {
            after.parse().map_err(|_| StoreError::BadCursor { cursor: cursor.unwrap_or_default().chars().take(80).collect() })?
        };
        self.db
            .read("list_versions", move |db| {
                let sql = "SELECT doc FROM versions WHERE tenant = ?1 AND container = ?2 AND function = ?3 AND version < ?4 ORDER BY version DESC LIMIT ?5";
                let key = params![path.tenant.as_str(), path.container.as_str(), path.function.as_str(), before, fetch];
                let items = get_all(db, "version", sql, key)?;
                Ok(page(items, limit, |v: &FunctionVersion| v.version.to_string()))
            })
            .await
    }

    async fn count_tenant(&self, tenant: &TenantName) -> Result<TenantCounts, StoreError> {
        let tenant = tenant.clone();
        self.db
            .read("count_tenant", move |db| {
                Ok(TenantCounts {
                    containers: count(db, "SELECT count(*) FROM containers WHERE tenant = ?1", [tenant.as_str()])?,
                    functions: count(db, "SELECT count(*) FROM functions WHERE tenant = ?1", [tenant.as_str()])?,
                })
            })
            .await
    }

    async fn put_token(&self, hash: TokenHash, token: Token) -> Result<(), StoreError> {
        self.db
            .write("put_token", move |db| {
                if let Some(name) = &token.tenant
                    && tenant(db, name.as_str())?.is_none()
                {
                    return Err(not_found(what("tenant", name)));
                }
                if count(db, "SELECT count(*) FROM tokens WHERE id = ?1 OR hash = ?2", [token.id.as_str(), &hash.to_hex()])? > 0 {
                    return Err(StoreError::Precondition { what: what("token", &token.id), actual: None }.into());
                }
                let doc = encode("token", &token)?;
                db.execute(
                    "INSERT INTO tokens (id, hash, tenant, doc) VALUES (?1, ?2, ?3, ?4)",
                    params![token.id, hash.to_hex(), token.tenant.as_ref().map(TenantName::as_str), doc],
                )?;
                Ok(())
            })
            .await
    }

    async fn get_token(&self, hash: &TokenHash) -> Result<Option<Token>, StoreError> {
        let hash = hash.to_hex();
        self.db.read("get_token", move |db| get(db, || "token".into(), "SELECT doc FROM tokens WHERE hash = ?1", [hash])).await
    }

    async fn list_tokens(
        &self,
        tenant: Option<&TenantName>,
        cursor: Option<&str>,
        limit: usize,
    ) -> Result<Page<Token>, StoreError> {
        let (tenant, after, (limit, fetch)) = (tenant.cloned(), after(cursor)?, fetch_count(limit));
        self.db
            .read("list_tokens", move |db| {
                let items = match &tenant {
                    None => {
                        get_all(db, "token", "SELECT doc FROM tokens WHERE id > ?1 ORDER BY id LIMIT ?2", params![after, fetch])?
                    }
                    Some(tenant) => {
                        let sql = "SELECT doc FROM tokens WHERE tenant = ?1 AND id > ?2 ORDER BY id LIMIT ?3";
                        get_all(db, "token", sql, params![tenant.as_str(), after, fetch])?
                    }
                };
                Ok(page(items, limit, |t: &Token| t.id.clone()))
            })
            .await
    }

    async fn delete_token(&self, id: &str) -> Result<Token, StoreError> {
        let id = id.to_owned();
        self.db
            .write("delete_token", move |db| {
                let token = get(db, || what("token", &id), "SELECT doc FROM tokens WHERE id = ?1", [&id])?;
                let token: Token = token.ok_or_else(|| not_found(what("token", &id)))?;
                db.execute("DELETE FROM tokens WHERE id = ?1", [&id])?;
                Ok(token)
            })
            .await
    }

    async fn get_module(&self, key: &BuildKey) -> Result<Option<ModuleRecord>, StoreError> {
        let key = key.0.clone();
        self.db
            .read("get_module", move |db| get(db, || what("module", &key), "SELECT doc FROM modules WHERE key = ?1", [&key]))
            .await
    }

    async fn put_module(&self, record: ModuleRecord, expected: Option<&ModuleRecord>) -> Result<bool, StoreError> {
        let expected = expected.cloned();
        self.db.write("put_module", move |db| put_module(db, &record, expected.as_ref())).await
    }

    async fn list_modules(&self, cursor: Option<&str>, limit: usize) -> Result<Page<ModuleRecord>, StoreError> {
        let (after, (limit, fetch)) = (after(cursor)?, fetch_count(limit));
        self.db
            .read("list_modules", move |db| {
                let mut parts = after.splitn(3, '\n');
                let (name, version, key) =
                    (parts.next().unwrap_or_default(), parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
                let sql = "SELECT doc FROM modules WHERE (name, version, key) > (?1, ?2, ?3) ORDER BY name, version, key LIMIT ?4";
                let items = get_all(db, "module", sql, params![name, version, key, fetch])?;
                Ok(page(items, limit, |m: &ModuleRecord| format!("{}\n{}\n{}", m.spec.name, m.spec.version, m.key.0)))
            })
            .await
    }

    async fn find_modules(&self, name: &str, version: &str) -> Result<Vec<ModuleRecord>, StoreError> {
        let (name, version) = (name.to_owned(), version.to_owned());
        self.db
            .read("find_modules", move |db| {
                get_all(db, "module", "SELECT doc FROM modules WHERE name = ?1 AND version = ?2 ORDER BY key", [name, version])
            })
            .await
    }

    async fn waiting_for(&self, key: &BuildKey, limit: usize) -> Result<Vec<(FunctionPath, VersionNumber)>, StoreError> {
        let (key, limit) = (key.0.clone(), int(limit as u64));
        self.db
            .read("waiting_for", move |db| {
                let mut statement = db.prepare_cached(
                    "SELECT v.doc FROM version_modules m JOIN versions v USING (tenant, container, function, version)
                     WHERE m.key = ?1 AND v.building LIMIT ?2",
                )?;
                let docs = statement.query_map(params![key, limit], |r| r.get::<_, String>(0))?.collect::<Result<Vec<_>, _>>()?;
                docs.iter()
                    .map(|doc| {
                        let version: FunctionVersion = decode(|| "version".into(), doc)?;
                        Ok((version.path, version.version))
                    })
                    .collect()
            })
            .await
    }

    async fn count_users(&self, key: &BuildKey) -> Result<u64, StoreError> {
        let key = key.0.clone();
        self.db
            .read("count_users", move |db| {
                let sql = "SELECT count(*) FROM version_modules m JOIN functions f
                           ON f.tenant = m.tenant AND f.container = m.container AND f.name = m.function AND f.live = m.version WHERE m.key = ?1";
                count(db, sql, [key])
            })
            .await
    }

    async fn get_document(&self, path: &FunctionPath) -> Result<Option<(serde_json::Value, u64)>, StoreError> {
        let path = path.clone();
        self.db
            .read("get_document", move |db| {
                let row: Option<(i64, Option<String>)> = db
                    .prepare_cached("SELECT etag, doc FROM documents WHERE tenant = ?1 AND container = ?2 AND function = ?3")?
                    .query_row([path.tenant.as_str(), path.container.as_str(), path.function.as_str()], |r| {
                        Ok((r.get(0)?, r.get(1)?))
                    })
                    .optional()?;
                match row {
                    Some((etag, Some(doc))) => Ok(Some((decode(|| what("document of", &path), &doc)?, etag.unsigned_abs()))),
                    _ => Ok(None),
                }
            })
            .await
    }

    async fn put_document(
        &self,
        path: &FunctionPath,
        data: serde_json::Value,
        precondition: Precondition,
    ) -> Result<u64, StoreError> {
        let path = path.clone();
        self.db
            .write("put_document", move |db| {
                if function(db, &path)?.is_none() {
                    return Err(not_found(what("function", &path)));
                }
                let key = [path.tenant.as_str(), path.container.as_str(), path.function.as_str()];
                // The row of a deleted document stays, so that its etags never come back.
                let row: Option<(i64, bool)> = db
                    .prepare_cached(
                        "SELECT etag, doc IS NOT NULL FROM documents WHERE tenant = ?1 AND container = ?2 AND function = ?3",
                    )?
                    .query_row(key, |r| Ok((r.get(0)?, r.get(1)?)))
                    .optional()?;
                let actual = row.filter(|(_, exists)| *exists).map(|(etag, _)| etag.unsigned_abs());
                precondition.check(&what("document of", &path), actual)?;
                let etag = row.map_or(1, |(etag, _)| etag.unsigned_abs() + 1);
                let doc = if data.is_null() { None } else { Some(encode("document", &data)?) };
                db.prepare_cached(
                    "INSERT OR REPLACE INTO documents (tenant, container, function, etag, doc) VALUES (?1, ?2, ?3, ?4, ?5)",
                )?
                .execute(params![key[0], key[1], key[2], int(etag), doc])?;
                Ok(etag)
            })
            .await
    }
}
