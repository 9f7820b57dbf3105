//! Functions and their versions. A function's head holds which versions there are: an item of a version that the head does not name is what
//! a deletion has left behind, and is neither seen nor in the way. All conditions are on the head's generation, and the live version is
//! copied to an item of its own, so that a node reads all it needs for a request in one call.

use super::{
    Cond, DynamoStore, Written, keys, now,
    table::{self, Item, Key, Tx},
};
use crate::{
    NewVersion, Page, Precondition, Servable, StoreError,
    function::what,
    paging::{after, cursor, limit},
};
use hearth_model::{Container, ContainerPath, Function, FunctionPath, FunctionVersion, VersionNumber, VersionStatus, limits};
use serde::{Deserialize, Serialize};

/// A version as its function's head knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Kept {
    /// Its number.
    pub n: u64,
    /// Tells it from other attempts to make the same number.
    pub id: String,
    /// Where its document is when it is too long for an item.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
}

/// All that one item says of a function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Head {
    pub function: Function,
    /// Ascending by number.
    pub kept: Vec<Kept>,
    /// The newest version at the last rollback: what was building then does not go live by itself.
    pub chosen_after: u64,
}

impl Head {
    pub fn keeps(&self, number: VersionNumber, id: Option<&str>) -> bool {
        self.kept.iter().any(|k| k.n == number.0 && id.is_none_or(|id| k.id == id))
    }

    fn version(&self, number: VersionNumber) -> Option<&Kept> {
        self.kept.iter().find(|k| k.n == number.0)
    }

    /// Takes out what is beyond the number of versions kept: the oldest first, never the live one.
    fn prune(&mut self) -> Vec<Kept> {
        let live = self.function.live.map(|v| v.0);
        let mut dropped = Vec::new();
        while self.kept.len() > limits::VERSIONS_KEPT_MAX {
            let Some(oldest) = self.kept.iter().position(|k| Some(k.n) != live) else { break };
            dropped.push(self.kept.remove(oldest));
        }
        dropped
    }
}

fn not_found(what: String) -> StoreError {
    StoreError::NotFound { what }
}

fn copy_to(mut item: Item, key: &Key, number: VersionNumber) -> Item {
    item.extend(table::item(key));
    item.insert("n".into(), table::n(number.0));
    item
}

impl DynamoStore {
    fn head(&self, path: &FunctionPath, item: Option<&Item>) -> Result<Option<Head>, StoreError> {
        item.map(|item| self.decode(&what("function", path), item)).transpose()
    }

    pub(super) async fn read_head(&self, path: &FunctionPath) -> Result<Option<Head>, StoreError> {
        self.head(path, self.table.get(&keys::head(path)).await?.as_ref())
    }

    fn put_head(&self, tx: &mut Tx, head: &Head, before: Option<u64>) -> Result<(), StoreError> {
        let mut item = table::item(&keys::head(&head.function.path));
        item.insert("gen".into(), table::n(head.function.generation));
        item.insert("doc".into(), table::s(self.encode("function", head)?));
        tx.put(item, before.map_or(Cond::Absent, |g| Cond::Equals("gen", table::n(g))));
        Ok(())
    }

    /// A version out of its item or the live copy. None when its long document has gone meanwhile.
    async fn version_of(&self, path: &FunctionPath, item: &Item) -> Result<Option<FunctionVersion>, StoreError> {
        let what = what("version of", path);
        let Some(doc) = self.fetch(&what, item).await? else { return Ok(None) };
        let mut version: FunctionVersion = serde_json::from_str(&doc).map_err(|e| self.damaged(&what, e))?;
        version.status = self.status_of(&what, item)?;
        Ok(Some(version))
    }

    /// A version's status, which lies outside its immutable document.
    pub(super) fn status_of(&self, what: &str, item: &Item) -> Result<VersionStatus, StoreError> {
        let status = table::text(item, "status").ok_or_else(|| self.damaged(what, "its item has no status"))?;
        serde_json::from_str(status).map_err(|e| self.damaged(what, e))
    }

    pub(super) async fn read_version(
        &self,
        path: &FunctionPath,
        number: VersionNumber,
    ) -> Result<Option<FunctionVersion>, StoreError> {
        let key = keys::version(path, number);
        let found = self.table.get_many(&[keys::head(path), key.clone()]).await?;
        match (self.head(path, found.get(&keys::head(path)))?, found.get(&key)) {
            (Some(head), Some(item)) if head.keeps(number, None) => self.version_of(path, item).await,
            _ => Ok(None),
        }
    }

    pub(super) async fn read_servable(&self, path: &FunctionPath) -> Result<Option<Servable>, StoreError> {
        let (tenant, container) = (keys::tenant(&path.tenant), keys::container(&path.container_path()));
        let (head, live) = (keys::head(path), keys::live(path));
        let mut rounds = self.rounds();
        loop {
            let found = self.table.get_many(&[tenant.clone(), container.clone(), head.clone(), live.clone()]).await?;
            let (Some(tenant), Some(container), Some(function)) =
                (found.get(&tenant), found.get(&container), self.head(path, found.get(&head))?.map(|h| h.function))
            else {
                return Ok(None);
            };
            let tenant = self.decode(&what("tenant", &path.tenant), tenant)?;
            let container: Container = self.decode(&what("container", path.container_path()), container)?;
            let Some(number) = function.live else { return Ok(Some(Servable { tenant, container, function, live: None })) };
            // The items are read one by one: when another version went live in between, the parts do not belong together.
            if let Some(item) = found.get(&live)
                && table::number(item, "n") == number.0
                && let Some(version) = self.version_of(path, item).await?
            {
                return Ok(Some(Servable { tenant, container, function, live: Some(version) }));
            }
            rounds.again(self, "get_servable").await?;
        }
    }

    pub(super) async fn add_version(
        &self,
        path: &FunctionPath,
        new: NewVersion,
        precondition: Precondition,
    ) -> Result<(Function, FunctionVersion), StoreError> {
        let _turn = self.turn(path).await;
        let mut rounds = self.rounds();
        loop {
            let (container, head) = (keys::container(&path.container_path()), keys::head(path));
            let found = self.table.get_many(&[container.clone(), head.clone()]).await?;
            if !found.contains_key(&container) {
                return Err(not_found(what("container", path.container_path())));
            }
            let before = self.head(path, found.get(&head))?;
            precondition.check(&what("function", path), before.as_ref().map(|h| h.function.generation))?;
            if let Some(made) = self.try_version(path, new.clone(), before).await? {
                return Ok(made);
            }
            rounds.again(self, "create_version").await?;
        }
    }

    /// One attempt on top of what was read; none when it has changed meanwhile.
    async fn try_version(
        &self,
        path: &FunctionPath,
        new: NewVersion,
        before: Option<Head>,
    ) -> Result<Option<(Function, FunctionVersion)>, StoreError> {
        let (at, generation) = (now(), before.as_ref().map(|h| h.function.generation));
        let version = version_from(path, new, before.as_ref().map_or(1, |h| h.function.latest.0 + 1));
        let number = version.version;
        let id = hex::encode(rand::random::<[u8; 4]>());
        let is_new = before.is_none();
        let mut head = before.unwrap_or_else(|| Head {
            function: Function { path: path.clone(), live: None, latest: number, generation: 0, created_at: at, updated_at: at },
            kept: Vec::new(),
            chosen_after: 0,
        });
        head.function.latest = number;
        head.function.generation += 1;
        head.function.updated_at = at;
        let ready = version.status == VersionStatus::Ready;
        if ready {
            head.function.live = Some(number);
        }
        let mut item = table::item(&keys::version(path, number));
        item.insert("status".into(), table::s(self.encode("version", &version.status)?));
        let object = self.attach(&mut item, &format!("versions/{path}"), self.encode("version", &version)?).await?;
        head.kept.push(Kept { n: number.0, id: id.clone(), object: object.clone() });
        let mut dropped = head.prune();

        // Before the version itself, so that no version waits unseen; entries without a version are nobody's and get removed.
        self.enter_builds(&version, &id).await?;
        let mut tx = self.table.tx();
        if ready {
            tx.put(copy_to(item.clone(), &keys::live(path), number), Cond::Always);
        }
        tx.put(item, Cond::Always);
        self.put_head(&mut tx, &head, generation)?;
        if is_new {
            tx.put(table::item(&keys::function_index(path)), Cond::Always);
            // Fails when the container has been deleted meanwhile; the next round finds that.
            tx.add(&keys::container_counts(&path.container_path()), "functions", 1);
        }
        for old in dropped.iter().take(tx.room()) {
            tx.delete(&keys::version(path, VersionNumber(old.n)), Cond::Always);
        }
        if self.table.commit(tx).await? != Written::Yes {
            self.discard(object).await;
            self.leave_builds(&version, &id).await;
            return Ok(None);
        }
        for old in &mut dropped {
            self.discard(old.object.take()).await;
        }
        Ok(Some((head.function, version)))
    }

    pub(super) async fn end_building(
        &self,
        path: &FunctionPath,
        number: VersionNumber,
        status: VersionStatus,
    ) -> Result<Function, StoreError> {
        let _turn = self.turn(path).await;
        let mut rounds = self.rounds();
        loop {
            let key = keys::version(path, number);
            let found = self.table.get_many(&[keys::head(path), key.clone()]).await?;
            let mut head = self.head(path, found.get(&keys::head(path)))?.ok_or_else(|| not_found(what("function", path)))?;
            let missing = || not_found(what("version", format!("{path} {number}")));
            let id = head.version(number).ok_or_else(missing)?.id.clone();
            let item = found.get(&key).ok_or_else(missing)?;
            if self.status_of("version", item)? != VersionStatus::Building || status == VersionStatus::Building {
                return Ok(head.function);
            }
            let mut item = item.clone();
            item.insert("status".into(), table::s(self.encode("version", &status)?));
            let before = head.function.generation;
            // A newer version that is live already, by its own settling or by a rollback, is what the tenant wants.
            let pinned = head.function.live.is_some_and(|live| live > number) || head.chosen_after >= number.0;
            let mut tx = self.table.tx();
            if status == VersionStatus::Ready && !pinned {
                head.function.live = Some(number);
                tx.put(copy_to(item.clone(), &keys::live(path), number), Cond::Always);
            }
            head.function.generation += 1;
            head.function.updated_at = now();
            tx.put(item.clone(), Cond::Always);
            self.put_head(&mut tx, &head, Some(before))?;
            if self.table.commit(tx).await? == Written::Yes {
                if let Some(version) = self.version_of(path, &item).await? {
                    self.leave_waiting(&version, &id).await;
                }
                return Ok(head.function);
            }
            rounds.again(self, "settle_version").await?;
        }
    }

    pub(super) async fn choose_live(
        &self,
        path: &FunctionPath,
        number: VersionNumber,
        precondition: Precondition,
    ) -> Result<Function, StoreError> {
        let _turn = self.turn(path).await;
        let mut rounds = self.rounds();
        loop {
            let key = keys::version(path, number);
            let found = self.table.get_many(&[keys::head(path), key.clone()]).await?;
            let mut head = self.head(path, found.get(&keys::head(path)))?.ok_or_else(|| not_found(what("function", path)))?;
            precondition.check(&what("function", path), Some(head.function.generation))?;
            let item = found.get(&key).filter(|_| head.keeps(number, None));
            let item = match item {
                Some(item) if self.status_of("version", item)? == VersionStatus::Ready => item.clone(),
                _ => return Err(not_found(what("ready version", format!("{path} {number}")))),
            };
            let before = head.function.generation;
            head.function.live = Some(number);
            head.function.generation += 1;
            head.function.updated_at = now();
            head.chosen_after = head.function.latest.0;
            let mut tx = self.table.tx();
            tx.put(copy_to(item, &keys::live(path), number), Cond::Always);
            self.put_head(&mut tx, &head, Some(before))?;
            if self.table.commit(tx).await? == Written::Yes {
                return Ok(head.function);
            }
            rounds.again(self, "set_live").await?;
        }
    }

    pub(super) async fn remove_function(&self, path: &FunctionPath, precondition: Precondition) -> Result<(), StoreError> {
        let _turn = self.turn(path).await;
        let mut rounds = self.rounds();
        loop {
            let found = self.table.get_many(&[keys::head(path), keys::document(path)]).await?;
            let head = self.head(path, found.get(&keys::head(path)))?.ok_or_else(|| not_found(what("function", path)))?;
            precondition.check(&what("function", path), Some(head.function.generation))?;
            let mut tx = self.table.tx();
            tx.delete(&keys::head(path), Cond::Equals("gen", table::n(head.function.generation)));
            tx.delete(&keys::live(path), Cond::Always);
            tx.delete(&keys::document(path), Cond::Always);
            tx.delete(&keys::function_index(path), Cond::Always);
            tx.add(&keys::container_counts(&path.container_path()), "functions", -1);
            let versions: Vec<Key> = head.kept.iter().map(|k| keys::version(path, VersionNumber(k.n))).collect();
            let (with, later) = versions.split_at(versions.len().min(tx.room()));
            for key in with {
                tx.delete(key, Cond::Always);
            }
            if self.table.commit(tx).await? != Written::Yes {
                rounds.again(self, "delete_function").await?;
                continue;
            }
            // Nothing refers to these any more; what stays behind when this fails is never seen.
            if !later.is_empty()
                && let Err(error) = self.table.write_many(Vec::new(), later).await
            {
                tracing::warn!(function = %path, %error, "versions of a deleted function stay in the table, unseen");
            }
            let document = found.get(&keys::document(path)).and_then(|d| table::text(d, "object")).map(str::to_owned);
            for object in head.kept.into_iter().map(|k| k.object).chain([document]) {
                self.discard(object).await;
            }
            return Ok(());
        }
    }

    pub(super) async fn page_of_functions(
        &self,
        path: &ContainerPath,
        from: Option<&str>,
        most: usize,
    ) -> Result<Page<Function>, StoreError> {
        let (after, limit) = (after(from)?, limit(most));
        let partition = keys::function_index_partition(path);
        let index = self.table.query(&partition, &keys::beyond("", &after), keys::LAST, limit + 1).await?;
        let names: Vec<String> = index.iter().filter_map(|i| table::text(i, table::SORT).map(str::to_owned)).collect();
        let next = (names.len() > limit).then(|| cursor(&names[limit - 1]));
        let paths: Vec<FunctionPath> = names.iter().take(limit).filter_map(|name| format!("{path}/{name}").parse().ok()).collect();
        let found = self.table.get_many(&paths.iter().map(keys::head).collect::<Vec<_>>()).await?;
        let mut items = Vec::with_capacity(paths.len());
        for path in &paths {
            // One that was deleted since the index was read is left out.
            items.extend(self.head(path, found.get(&keys::head(path)))?.map(|head| head.function));
        }
        Ok(Page { items, next })
    }

    pub(super) async fn page_of_versions(
        &self,
        path: &FunctionPath,
        from: Option<&str>,
        most: usize,
    ) -> Result<Page<FunctionVersion>, StoreError> {
        let (after, limit) = (after(from)?, limit(most));
        let bad = || StoreError::BadCursor { cursor: from.unwrap_or_default().chars().take(80).collect() };
        let before = if after.is_empty() { u64::MAX } else { after.parse().map_err(|_| bad())? };
        let Some(head) = self.read_head(path).await? else { return Ok(Page { items: Vec::new(), next: None }) };
        let mut numbers: Vec<VersionNumber> =
            head.kept.iter().rev().map(|k| VersionNumber(k.n)).filter(|v| v.0 < before).take(limit + 1).collect();
        let more = numbers.len() > limit;
        numbers.truncate(limit);
        let next = if more { numbers.last().map(|last| cursor(&last.to_string())) } else { None };
        let found = self.table.get_many(&numbers.iter().map(|v| keys::version(path, *v)).collect::<Vec<_>>()).await?;
        let mut items = Vec::with_capacity(numbers.len());
        for number in numbers {
            if let Some(item) = found.get(&keys::version(path, number)) {
                items.extend(self.version_of(path, item).await?);
            }
        }
        Ok(Page { items, next })
    }
}

fn version_from(path: &FunctionPath, new: NewVersion, number: u64) -> FunctionVersion {
    FunctionVersion {
        path: path.clone(),
        version: VersionNumber(number),
        status: new.status,
        code: new.code,
        main: new.main,
        model: new.model,
        timeout_ms: new.timeout_ms,
        dependencies: new.dependencies,
        modules: new.modules,
        env: new.env,
        secrets: new.secrets,
        created_at: now(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pruning_keeps_the_live_version_and_the_newest() {
        let path: FunctionPath = "a/b/c".parse().unwrap();
        let at = now();
        let live = Some(VersionNumber(1));
        let function = Function { path, live, latest: VersionNumber(1), generation: 1, created_at: at, updated_at: at };
        let kept = (1..=limits::VERSIONS_KEPT_MAX as u64 + 2).map(|n| Kept { n, id: String::new(), object: None }).collect();
        let mut head = Head { function, kept, chosen_after: 0 };
        assert_eq!(head.prune().iter().map(|k| k.n).collect::<Vec<_>>(), [2, 3]);
        assert_eq!(head.kept.len(), limits::VERSIONS_KEPT_MAX);
        assert!(head.keeps(VersionNumber(1), None) && !head.keeps(VersionNumber(2), None));
        assert!(head.prune().is_empty(), "pruning twice changes nothing");
    }
}
