//! Tokens: by the hash of their text for authentication (one read), by id for the operator's list, by tenant for the tenant's. All three
//! items hold the whole token, which is small, and expire together.

use super::{
    Cond, DynamoStore, Written, keys,
    table::{self, Item, Key, Tx},
};
use crate::{
    Page, StoreError,
    aws::design::{TOKEN_KEPT_S, TTL},
    function::what,
    paging::{after, limit, page},
};
use hearth_model::{TenantName, Token, TokenHash};

impl DynamoStore {
    pub(super) async fn read_token(&self, hash: &TokenHash) -> Result<Option<Token>, StoreError> {
        let item = self.table.get(&keys::token(hash)).await?;
        item.map(|item| self.decode("token", &item)).transpose()
    }

    pub(super) async fn write_token(&self, hash: TokenHash, token: Token) -> Result<(), StoreError> {
        let doc = self.encode("token", &token)?;
        let item = |key: &Key| {
            let mut item = table::item(key);
            item.insert("doc".into(), table::s(&doc));
            item.insert("hash".into(), table::s(hash.to_hex()));
            if let Some(expires_at) = token.expires_at {
                item.insert(TTL.into(), table::n(expires_at.0 / 1_000 + TOKEN_KEPT_S));
            }
            item
        };
        let mut tx = self.table.tx();
        tx.put(item(&keys::token(&hash)), Cond::Absent);
        tx.put(item(&keys::token_index(&token.id)), Cond::Absent);
        if let Some(tenant) = &token.tenant {
            tx.put(item(&keys::tenant_token(tenant, &token.id)), Cond::Always);
            tx.add(&keys::tenant_counts(tenant), "tokens", 1);
        }
        match self.table.commit(tx).await? {
            Written::Yes => Ok(()),
            Written::Conflict(places) => match &token.tenant {
                Some(tenant) if places.contains(&3) => Err(StoreError::NotFound { what: what("tenant", tenant) }),
                _ => Err(StoreError::Precondition { what: what("token", &token.id), actual: None }),
            },
        }
    }

    pub(super) async fn page_of_tokens(
        &self,
        tenant: Option<&TenantName>,
        from: Option<&str>,
        most: usize,
    ) -> Result<Page<Token>, StoreError> {
        let (after, limit) = (after(from)?, limit(most));
        let (partition, prefix) = tenant.map_or((keys::TOKENS.to_owned(), ""), |t| (keys::tenant_partition(t), "K#"));
        let items = self.table.query(&partition, &keys::beyond(prefix, &after), &keys::end(prefix), limit + 1).await?;
        let items = items.iter().map(|item| self.decode("token", item)).collect::<Result<_, _>>()?;
        Ok(page(items, limit, |t: &Token| t.id.clone()))
    }

    pub(super) async fn remove_token(&self, id: &str) -> Result<Token, StoreError> {
        let missing = || StoreError::NotFound { what: what("token", id) };
        let item = self.table.get(&keys::token_index(id)).await?.ok_or_else(missing)?;
        let token: Token = self.decode(&what("token", id), &item)?;
        let mut tx = self.table.tx();
        self.delete_token_items(&mut tx, &item, Cond::Exists)?;
        match self.table.commit(tx).await? {
            Written::Yes => Ok(token),
            Written::Conflict(_) => Err(missing()),
        }
    }

    /// Deletes a token given any of its items.
    pub(super) fn delete_token_items(&self, tx: &mut Tx, item: &Item, cond: Cond) -> Result<(), StoreError> {
        let token: Token = self.decode("token", item)?;
        let hash = table::text(item, "hash").ok_or_else(|| self.damaged("token", "its item has no hash"))?;
        tx.delete(&keys::token_index(&token.id), cond);
        tx.delete(&Key::new(format!("K#{hash}"), "#"), Cond::Always);
        if let Some(tenant) = &token.tenant {
            tx.delete(&keys::tenant_token(tenant, &token.id), Cond::Always);
        }
        Ok(())
    }
}
