//! Module records, and which versions wait for a build or use it. Entries of versions are written before the version and carry its attempt's
//! id: an entry counts only when the function's head names that very version, so that an entry too many does no harm. Entries that are
//! known to be nobody's are removed when they are come across.

use super::{
    Cond, DynamoStore, Written, keys, now,
    table::{self, Key},
    versions::Head,
};
use crate::{
    Page, StoreError,
    function::what,
    paging::{after, cursor, limit},
};
use hearth_model::{BuildKey, FunctionPath, FunctionVersion, ModuleRecord, VersionNumber, VersionStatus};
use sha2::{Digest, Sha256};
use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

/// Entries looked at together: two reads each, and a batch read takes a hundred.
const ENTRIES_AT_ONCE: usize = 50;
/// Functions whose use of a build is looked up one by one; beyond that entries are counted, which may be too many by those of old versions.
const USERS_CHECKED_MAX: usize = 1_000;
/// An entry whose version is not there is nobody's after so long.
const ABANDONED_AFTER: Duration = Duration::from_secs(3_600);

/// What a compare-and-set compares, as a short text.
fn fingerprint(record: &ModuleRecord) -> String {
    let compared = serde_json::json!([record.epoch, record.attempts, record.state]).to_string();
    hex::encode(Sha256::digest(compared))
}

fn builds(version: &FunctionVersion) -> BTreeSet<&BuildKey> {
    version.modules.iter().map(|m| &m.build).collect()
}

struct Entry {
    key: Key,
    path: FunctionPath,
    version: VersionNumber,
    id: String,
    at: u64,
}

impl DynamoStore {
    pub(super) async fn read_module(&self, key: &BuildKey) -> Result<Option<ModuleRecord>, StoreError> {
        let item = self.table.get(&keys::module(key)).await?;
        item.map(|item| self.decode(&what("module", &key.0), &item)).transpose()
    }

    pub(super) async fn write_module(&self, record: ModuleRecord, expected: Option<&ModuleRecord>) -> Result<bool, StoreError> {
        if let Some(expected) = expected
            // Refused rather than overwritten when a newer Hearth has written it: the read checks the schema.
            && self.read_module(&record.key).await?.is_none_or(|found| fingerprint(&found) != fingerprint(expected))
        {
            return Ok(false);
        }
        let mut item = table::item(&keys::module(&record.key));
        item.insert("cas".into(), table::s(fingerprint(&record)));
        item.insert("doc".into(), table::s(self.encode("module", &record)?));
        let mut tx = self.table.tx();
        match expected {
            Some(expected) => tx.put(item, Cond::Equals("cas", table::s(fingerprint(expected)))),
            None => {
                tx.put(item, Cond::Absent).put(table::item(&Key::new(keys::MODULES, keys::module_order(&record))), Cond::Always)
            }
        };
        Ok(self.table.commit(tx).await? == Written::Yes)
    }

    pub(super) async fn page_of_modules(&self, from: Option<&str>, most: usize) -> Result<Page<ModuleRecord>, StoreError> {
        let (after, limit) = (after(from)?, limit(most));
        let index = self.table.query(keys::MODULES, &keys::beyond("", &after), keys::LAST, limit + 1).await?;
        let orders: Vec<String> = index.iter().filter_map(|i| table::text(i, table::SORT).map(str::to_owned)).collect();
        let next = (orders.len() > limit).then(|| cursor(&orders[limit - 1]));
        Ok(Page { items: self.modules_at(&orders[..orders.len().min(limit)]).await?, next })
    }

    async fn modules_at(&self, orders: &[String]) -> Result<Vec<ModuleRecord>, StoreError> {
        let of = |order: &String| order.rsplit_once('\n').map(|(_, key)| keys::module(&BuildKey(key.to_owned())));
        let wanted: Vec<Key> = orders.iter().filter_map(of).collect();
        let found = self.table.get_many(&wanted).await?;
        wanted.iter().filter_map(|key| found.get(key)).map(|item| self.decode("module", item)).collect()
    }

    pub(super) async fn modules_named(&self, name: &str, version: &str) -> Result<Vec<ModuleRecord>, StoreError> {
        let prefix = format!("{name}\n{version}\n");
        // One per Node.js version, script setting, architecture and image.
        let index = self.table.query(keys::MODULES, &prefix, &keys::end(&prefix), 1_000).await?;
        let orders: Vec<String> = index.iter().filter_map(|i| table::text(i, table::SORT).map(str::to_owned)).collect();
        self.modules_at(&orders).await
    }

    /// Says to each of its builds that this version uses it, and waits for it while it is `Building`.
    pub(super) async fn enter_builds(&self, version: &FunctionVersion, id: &str) -> Result<(), StoreError> {
        let sk = keys::of_version(&version.path, version.version, id);
        let entry = |partition| {
            let mut item = table::item(&Key::new(partition, &sk));
            item.insert("at".into(), table::n(now().0));
            item
        };
        let mut entries: Vec<_> = builds(version).into_iter().map(|key| entry(keys::users_partition(key))).collect();
        if version.status == VersionStatus::Building {
            entries.extend(builds(version).into_iter().map(|key| entry(keys::waiting_partition(key))));
        }
        if entries.is_empty() { Ok(()) } else { self.table.write_many(entries, &[]).await }
    }

    /// Takes back the entries of a version that was not made.
    pub(super) async fn leave_builds(&self, version: &FunctionVersion, id: &str) {
        let sk = keys::of_version(&version.path, version.version, id);
        let of = |key| [Key::new(keys::users_partition(key), &sk), Key::new(keys::waiting_partition(key), &sk)];
        self.drop_entries(&builds(version).into_iter().flat_map(of).collect::<Vec<_>>()).await;
    }

    /// A version that is settled waits for nothing.
    pub(super) async fn leave_waiting(&self, version: &FunctionVersion, id: &str) {
        let sk = keys::of_version(&version.path, version.version, id);
        let keys: Vec<Key> = builds(version).into_iter().map(|key| Key::new(keys::waiting_partition(key), &sk)).collect();
        self.drop_entries(&keys).await;
    }

    async fn drop_entries(&self, entries: &[Key]) {
        if !entries.is_empty()
            && let Err(error) = self.table.write_many(Vec::new(), entries).await
        {
            tracing::debug!(%error, "entries of builds stay until they are come across");
        }
    }

    /// The next entries of a partition after a sort key.
    async fn entries(&self, partition: &str, after: &str) -> Result<Vec<Entry>, StoreError> {
        let items = self.table.query(partition, &keys::beyond("", after), keys::LAST, ENTRIES_AT_ONCE).await?;
        let entry = |item: &table::Item| {
            let sk = table::text(item, table::SORT)?;
            let (path, version, id) = keys::to_version(sk)?;
            let key = Key::new(partition, sk);
            Some(Entry { key, path, version, id: id.to_owned(), at: table::number(item, "at") })
        };
        items
            .iter()
            .map(|item| entry(item).ok_or_else(|| self.damaged("entry of a build", "its sort key names no version")))
            .collect()
    }

    /// Whether an entry will never count again.
    fn is_abandoned(entry: &Entry, head: Option<&Head>) -> bool {
        let passed = head.is_some_and(|h| h.function.latest >= entry.version && !h.keeps(entry.version, Some(&entry.id)));
        // Its version may be about to be written, unless that is long ago.
        let missing = head.is_none_or(|h| h.function.latest < entry.version);
        passed || (missing && now().0.saturating_sub(entry.at) > ABANDONED_AFTER.as_millis() as u64)
    }

    async fn heads(&self, entries: &[Entry]) -> Result<HashMap<FunctionPath, Head>, StoreError> {
        let paths: BTreeSet<String> = entries.iter().map(|e| e.path.to_string()).collect();
        let paths: Vec<FunctionPath> = paths.iter().filter_map(|p| p.parse().ok()).collect();
        let found = self.table.get_many(&paths.iter().map(keys::head).collect::<Vec<_>>()).await?;
        let mut heads = HashMap::with_capacity(paths.len());
        for path in paths {
            if let Some(item) = found.get(&keys::head(&path)) {
                let head = self.decode(&what("function", &path), item)?;
                heads.insert(path, head);
            }
        }
        Ok(heads)
    }

    pub(super) async fn versions_waiting(
        &self,
        key: &BuildKey,
        limit: usize,
    ) -> Result<Vec<(FunctionPath, VersionNumber)>, StoreError> {
        let partition = keys::waiting_partition(key);
        let (mut waiting, mut after) = (Vec::new(), String::new());
        loop {
            let entries = self.entries(&partition, &after).await?;
            let heads = self.heads(&entries).await?;
            let versions: Vec<Key> = entries.iter().map(|e| keys::version(&e.path, e.version)).collect::<Vec<_>>();
            let unique: Vec<Key> = versions.iter().cloned().collect::<std::collections::HashSet<_>>().into_iter().collect();
            let items = self.table.get_many(&unique).await?;
            let mut nobodys = Vec::new();
            for (entry, version) in entries.iter().zip(&versions) {
                let head = heads.get(&entry.path);
                let kept = head.is_some_and(|h| h.keeps(entry.version, Some(&entry.id)));
                let status = items.get(version).map(|item| self.status_of("version", item)).transpose()?;
                match (kept, status) {
                    (true, Some(VersionStatus::Building)) => waiting.push((entry.path.clone(), entry.version)),
                    (true, Some(_)) => nobodys.push(entry.key.clone()),
                    _ if Self::is_abandoned(entry, head) => nobodys.push(entry.key.clone()),
                    _ => {}
                }
            }
            self.drop_entries(&nobodys).await;
            if waiting.len() >= limit || entries.len() < ENTRIES_AT_ONCE {
                waiting.truncate(limit);
                return Ok(waiting);
            }
            after = entries.last().map(|e| e.key.sk.clone()).unwrap_or_default();
        }
    }

    pub(super) async fn count_live_users(&self, key: &BuildKey) -> Result<u64, StoreError> {
        let partition = keys::users_partition(key);
        let (mut users, mut checked, mut after) = (0, 0, String::new());
        loop {
            let entries = self.entries(&partition, &after).await?;
            let heads = self.heads(&entries).await?;
            let mut nobodys = Vec::new();
            for entry in &entries {
                let head = heads.get(&entry.path);
                if head.is_some_and(|h| h.function.live == Some(entry.version) && h.keeps(entry.version, Some(&entry.id))) {
                    users += 1;
                } else if Self::is_abandoned(entry, head) {
                    nobodys.push(entry.key.clone());
                }
            }
            self.drop_entries(&nobodys).await;
            checked += heads.len();
            after = entries.last().map(|e| e.key.sk.clone()).unwrap_or_default();
            if entries.len() < ENTRIES_AT_ONCE {
                return Ok(users);
            }
            if checked >= USERS_CHECKED_MAX {
                return Ok(users + self.table.count(&partition, &keys::beyond("", &after), keys::LAST).await?);
            }
        }
    }
}
