//! Tenants and containers. Their counts lie in items of their own, so that a function's creation does not change the container's
//! generation; each change of a count also moves its `rev`, which is what a deletion is conditional on.

use super::{
    Cond, DynamoStore, Written, keys, now,
    table::{self, Item, Key},
};
use crate::{
    Page, Precondition, StoreError,
    function::{TenantCounts, what},
    paging::{after, cursor, limit, page},
};
use hearth_model::{Container, ContainerPath, Tenant, TenantName};

/// Tokens that are deleted together with their tenant; those beyond go before it.
const TOKENS_AT_ONCE: usize = 30;

fn counts(key: &Key) -> Item {
    let mut item = table::item(key);
    item.insert("rev".into(), table::n(0));
    item
}

fn generation(generation: Option<u64>) -> Cond {
    generation.map_or(Cond::Absent, |g| Cond::Equals("gen", table::n(g)))
}

impl DynamoStore {
    fn tenant_item(&self, tenant: &Tenant) -> Result<Item, StoreError> {
        let mut item = table::item(&keys::tenant(&tenant.name));
        item.insert("gen".into(), table::n(tenant.generation));
        item.insert("doc".into(), table::s(self.encode("tenant", tenant)?));
        Ok(item)
    }

    pub(super) async fn read_tenant(&self, name: &TenantName) -> Result<Option<Tenant>, StoreError> {
        let item = self.table.get(&keys::tenant(name)).await?;
        item.map(|item| self.decode(&what("tenant", name), &item)).transpose()
    }

    pub(super) async fn write_tenant(&self, mut tenant: Tenant, precondition: Precondition) -> Result<Tenant, StoreError> {
        let mut rounds = self.rounds();
        loop {
            let existing = self.read_tenant(&tenant.name).await?;
            precondition.check(&what("tenant", &tenant.name), existing.as_ref().map(|t| t.generation))?;
            tenant.generation = existing.as_ref().map_or(1, |t| t.generation + 1);
            tenant.created_at = existing.as_ref().map_or_else(now, |t| t.created_at);
            let mut tx = self.table.tx();
            tx.put(self.tenant_item(&tenant)?, generation(existing.as_ref().map(|t| t.generation)));
            if existing.is_none() {
                tx.put(counts(&keys::tenant_counts(&tenant.name)), Cond::Absent);
                tx.put(table::item(&keys::tenant_index(&tenant.name)), Cond::Always);
            }
            if self.table.commit(tx).await? == Written::Yes {
                return Ok(tenant);
            }
            rounds.again(self, "put_tenant").await?;
        }
    }

    pub(super) async fn remove_tenant(&self, name: &TenantName, precondition: Precondition) -> Result<(), StoreError> {
        let mut rounds = self.rounds();
        loop {
            let found = self.table.get_many(&[keys::tenant(name), keys::tenant_counts(name)]).await?;
            let item = found.get(&keys::tenant(name)).ok_or_else(|| StoreError::NotFound { what: what("tenant", name) })?;
            let existing: Tenant = self.decode(&what("tenant", name), item)?;
            precondition.check(&what("tenant", name), Some(existing.generation))?;
            let counts = found.get(&keys::tenant_counts(name));
            if counts.is_some_and(|c| table::number(c, "containers") > 0) {
                return Err(StoreError::NotEmpty { what: what("tenant", name) });
            }
            let rev = counts.map_or(0, |c| table::number(c, "rev"));
            let partition = keys::tenant_partition(name);
            let tokens = self.table.query(&partition, "K#", &keys::end("K#"), TOKENS_AT_ONCE + 1).await?;
            if tokens.len() > TOKENS_AT_ONCE {
                // Too many for one transaction. A tenant that is being deleted loses some of its tokens first.
                for token in &tokens {
                    if let Some(id) = table::text(token, table::SORT).and_then(|sk| sk.strip_prefix("K#")) {
                        let _ = self.remove_token(id).await?;
                    }
                }
                continue;
            }
            let mut tx = self.table.tx();
            tx.delete(&keys::tenant(name), generation(Some(existing.generation)));
            // A container or a token made meanwhile moves `rev`.
            tx.delete(&keys::tenant_counts(name), Cond::Equals("rev", table::n(rev)));
            tx.delete(&keys::tenant_index(name), Cond::Always);
            for token in &tokens {
                self.delete_token_items(&mut tx, token, Cond::Always)?;
            }
            if self.table.commit(tx).await? == Written::Yes {
                return Ok(());
            }
            rounds.again(self, "delete_tenant").await?;
        }
    }

    pub(super) async fn page_of_tenants(&self, from: Option<&str>, most: usize) -> Result<Page<Tenant>, StoreError> {
        let (after, limit) = (after(from)?, limit(most));
        let index = self.table.query(keys::TENANTS, &keys::beyond("", &after), keys::LAST, limit + 1).await?;
        let names: Vec<String> = index.iter().filter_map(|i| table::text(i, table::SORT).map(str::to_owned)).collect();
        let next = (names.len() > limit).then(|| cursor(&names[limit - 1]));
        let parsed: Vec<TenantName> = names.iter().take(limit).filter_map(|n| n.parse().ok()).collect();
        let found = self.table.get_many(&parsed.iter().map(keys::tenant).collect::<Vec<_>>()).await?;
        let items = parsed
            .iter()
            // One that was deleted since the index was read is left out.
            .filter_map(|name| found.get(&keys::tenant(name)).map(|item| self.decode(&what("tenant", name), item)))
            .collect::<Result<_, _>>()?;
        Ok(Page { items, next })
    }

    pub(super) async fn read_container(&self, path: &ContainerPath) -> Result<Option<Container>, StoreError> {
        let item = self.table.get(&keys::container(path)).await?;
        item.map(|item| self.decode(&what("container", path), &item)).transpose()
    }

    pub(super) async fn write_container(
        &self,
        mut container: Container,
        precondition: Precondition,
    ) -> Result<Container, StoreError> {
        let path = container.path();
        let mut rounds = self.rounds();
        loop {
            let found = self.table.get_many(&[keys::tenant(&path.tenant), keys::container(&path)]).await?;
            if !found.contains_key(&keys::tenant(&path.tenant)) {
                return Err(StoreError::NotFound { what: what("tenant", &path.tenant) });
            }
            let existing: Option<Container> =
                found.get(&keys::container(&path)).map(|item| self.decode(&what("container", &path), item)).transpose()?;
            precondition.check(&what("container", &path), existing.as_ref().map(|c| c.generation))?;
            container.generation = existing.as_ref().map_or(1, |c| c.generation + 1);
            container.created_at = existing.as_ref().map_or_else(now, |c| c.created_at);
            let mut item = table::item(&keys::container(&path));
            item.insert("gen".into(), table::n(container.generation));
            item.insert("doc".into(), table::s(self.encode("container", &container)?));
            let mut tx = self.table.tx();
            tx.put(item, generation(existing.as_ref().map(|c| c.generation)));
            if existing.is_none() {
                tx.put(counts(&keys::container_counts(&path)), Cond::Absent);
                // Fails when the tenant has been deleted meanwhile; the next round finds that.
                tx.add(&keys::tenant_counts(&path.tenant), "containers", 1);
            }
            if self.table.commit(tx).await? == Written::Yes {
                return Ok(container);
            }
            rounds.again(self, "put_container").await?;
        }
    }

    pub(super) async fn remove_container(&self, path: &ContainerPath, precondition: Precondition) -> Result<(), StoreError> {
        let mut rounds = self.rounds();
        loop {
            let found = self.table.get_many(&[keys::container(path), keys::container_counts(path)]).await?;
            let item = found.get(&keys::container(path)).ok_or_else(|| StoreError::NotFound { what: what("container", path) })?;
            let existing: Container = self.decode(&what("container", path), item)?;
            precondition.check(&what("container", path), Some(existing.generation))?;
            let counts = found.get(&keys::container_counts(path));
            if counts.is_some_and(|c| table::number(c, "functions") > 0) {
                return Err(StoreError::NotEmpty { what: what("container", path) });
            }
            let rev = counts.map_or(0, |c| table::number(c, "rev"));
            let mut tx = self.table.tx();
            tx.delete(&keys::container(path), generation(Some(existing.generation)));
            tx.delete(&keys::container_counts(path), Cond::Equals("rev", table::n(rev)));
            tx.add(&keys::tenant_counts(&path.tenant), "containers", -1);
            if self.table.commit(tx).await? == Written::Yes {
                return Ok(());
            }
            rounds.again(self, "delete_container").await?;
        }
    }

    pub(super) async fn page_of_containers(
        &self,
        tenant: &TenantName,
        from: Option<&str>,
        most: usize,
    ) -> Result<Page<Container>, StoreError> {
        let (after, limit) = (after(from)?, limit(most));
        let partition = keys::tenant_partition(tenant);
        let items = self.table.query(&partition, &keys::beyond("C#", &after), &keys::end("C#"), limit + 1).await?;
        let items = items.iter().map(|item| self.decode("container", item)).collect::<Result<_, _>>()?;
        Ok(page(items, limit, |c: &Container| c.name.to_string()))
    }

    pub(super) async fn count_of_tenant(&self, tenant: &TenantName) -> Result<TenantCounts, StoreError> {
        // A tenant's containers are bounded by its limits, so that this is one or two pages of small items.
        let counts = self.table.query(&keys::tenant_partition(tenant), "N#", &keys::end("N#"), usize::MAX).await?;
        Ok(TenantCounts {
            containers: counts.len() as u64,
            functions: counts.iter().map(|item| table::number(item, "functions")).sum(),
        })
    }
}
