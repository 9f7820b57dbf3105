//! Storage documents of functions. The item of a deleted document stays while its function lives, so that an etag never comes back.

use super::{
    Cond, DynamoStore, Written, keys,
    table::{self, Item},
};
use crate::{Precondition, StoreError, function::what};
use hearth_model::FunctionPath;
use serde_json::Value;

fn exists(item: &Item) -> bool {
    item.contains_key("doc") || item.contains_key("object")
}

impl DynamoStore {
    pub(super) async fn read_document(&self, path: &FunctionPath) -> Result<Option<(Value, u64)>, StoreError> {
        let what = what("document of", path);
        let mut rounds = self.rounds();
        loop {
            let Some(item) = self.table.get(&keys::document(path)).await?.filter(exists) else { return Ok(None) };
            if let Some(doc) = self.fetch(&what, &item).await? {
                let value = serde_json::from_str(&doc).map_err(|e| self.damaged(&what, e))?;
                return Ok(Some((value, table::number(&item, "gen"))));
            }
            // Written anew since the item was read, and its object is gone.
            rounds.again(self, "get_document").await?;
        }
    }

    pub(super) async fn write_document(
        &self,
        path: &FunctionPath,
        data: Value,
        precondition: Precondition,
    ) -> Result<u64, StoreError> {
        let _turn = self.turn(path).await;
        let mut rounds = self.rounds();
        loop {
            let found = self.table.get_many(&[keys::head(path), keys::document(path)]).await?;
            if !found.contains_key(&keys::head(path)) {
                return Err(StoreError::NotFound { what: what("function", path) });
            }
            let before = found.get(&keys::document(path));
            let etag = before.map(|item| table::number(item, "gen"));
            precondition.check(&what("document of", path), before.filter(|i| exists(i)).and(etag))?;
            let next = etag.unwrap_or(0) + 1;
            let mut item = table::item(&keys::document(path));
            item.insert("gen".into(), table::n(next));
            let object = if data.is_null() {
                None
            } else {
                self.attach(&mut item, &format!("storage/{path}"), self.encode("document", &data)?).await?
            };
            let mut tx = self.table.tx();
            tx.put(item, etag.map_or(Cond::Absent, |e| Cond::Equals("gen", table::n(e))));
            tx.exists(&keys::head(path));
            if self.table.commit(tx).await? == Written::Yes {
                self.discard(before.and_then(|i| table::text(i, "object")).map(str::to_owned)).await;
                return Ok(next);
            }
            self.discard(object).await;
            rounds.again(self, "put_document").await?;
        }
    }
}
