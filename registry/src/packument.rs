//! A package's description in the registry: versions, when they were published, what they depend on.

use crate::{FRESH_FOR, REQUESTS_MAX, Registry, resolve::ResolveError};
use futures_util::StreamExt;
use hearth_model::ModuleName;
use serde::Deserialize;
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Instant,
};

/// The largest description that is read; the largest real ones have some tens of megabytes.
const PACKUMENT_BYTES_MAX: usize = 100 * 1024 * 1024;

/// What matters of a package's description.
#[derive(Debug, Deserialize)]
pub(crate) struct Packument {
    #[serde(rename = "dist-tags", default)]
    pub tags: BTreeMap<String, String>,
    #[serde(default)]
    pub versions: BTreeMap<String, Manifest>,
    /// ISO 8601, by version.
    #[serde(default)]
    pub time: HashMap<String, serde_json::Value>,
}

/// What matters of one version.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Manifest {
    #[serde(rename = "peerDependencies", default, deserialize_with = "texts")]
    pub peers: BTreeMap<String, String>,
    #[serde(rename = "peerDependenciesMeta", default)]
    pub peers_meta: serde_json::Value,
    #[serde(default)]
    pub deprecated: serde_json::Value,
    #[serde(default)]
    pub dist: Dist,
}

/// Where a version's files are.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct Dist {
    #[serde(default)]
    pub integrity: Option<String>,
    #[serde(default)]
    pub tarball: Option<String>,
}

/// Some old descriptions hold other things than objects of texts.
fn texts<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error> {
    let value = serde_json::Value::deserialize(deserializer)?;
    let entries = value.as_object().into_iter().flatten();
    Ok(entries.filter_map(|(name, range)| Some((name.clone(), range.as_str()?.to_owned()))).collect())
}

impl Manifest {
    pub fn is_optional_peer(&self, name: &str) -> bool {
        self.peers_meta.get(name).and_then(|m| m.get("optional")).and_then(serde_json::Value::as_bool).unwrap_or(false)
    }

    pub fn is_deprecated(&self) -> bool {
        self.deprecated.as_str().is_some_and(|text| !text.is_empty()) || self.deprecated == serde_json::Value::Bool(true)
    }
}

impl Packument {
    /// Seconds since the epoch at which a version was published; none where the registry does not say.
    pub fn published_s(&self, version: &str) -> Option<u64> {
        parse_time_s(self.time.get(version)?.as_str()?)
    }
}

/// `2020-02-29T12:34:56.789Z` as seconds since the epoch (days by Howard Hinnant's `days_from_civil`).
pub(crate) fn parse_time_s(text: &str) -> Option<u64> {
    let number = |from: usize, to: usize| text.get(from..to)?.parse::<i64>().ok();
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let y = if month <= 2 { year - 1 } else { year };
    let era = y.div_euclid(400);
    let year_of_era = y - era * 400;
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    let days = era * 146_097 + day_of_era - 719_468;
    u64::try_from(days * 86_400 + hour * 3_600 + minute * 60 + second).ok()
}

impl Registry {
    /// The address of a package's description; the slash of a scoped name is encoded.
    pub(crate) fn packument_url(&self, name: &str) -> String {
        format!("{}{}", self.npm.url, name.replacen('/', "%2f", 1))
    }

    pub(crate) fn request(&self, url: &str) -> reqwest::RequestBuilder {
        let request = self.http.get(url);
        match &self.npm.authorization {
            // Only ever to the registry itself.
            Some(value) if url.starts_with(&self.npm.url) => request.header("authorization", value),
            _ => request,
        }
    }

    /// The whole description as bytes; within a limit.
    pub(crate) async fn fetch_packument(&self, name: &str) -> Result<Vec<u8>, ResolveError> {
        let down = |detail: String| ResolveError::Registry { module: name.to_owned(), detail };
        let _permit = self.requests.acquire().await.map_err(|e| down(e.to_string()))?;
        let response = self.request(&self.packument_url(name)).send().await.map_err(|e| down(plain(&e)))?;
        match response.status().as_u16() {
            200 => {}
            404 | 405 => return Err(ResolveError::UnknownModule { module: name.to_owned() }),
            status => return Err(down(format!("it answered {status}"))),
        }
        let mut body = Vec::new();
        let mut chunks = response.bytes_stream();
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|e| down(plain(&e)))?;
            if body.len() + chunk.len() > PACKUMENT_BYTES_MAX {
                return Err(down(format!("its description has more than {PACKUMENT_BYTES_MAX} bytes")));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    fn fresh(&self, name: &ModuleName) -> Option<Arc<Packument>> {
        let (packument, at) = self.packuments.get(name.as_str())?;
        (at.elapsed() < FRESH_FOR).then_some(packument)
    }

    /// A package's description, current within a minute; an older one serves when the registry is away. Of many who ask at once one
    /// asks the registry.
    pub(crate) async fn packument(&self, name: &ModuleName) -> Result<Arc<Packument>, ResolveError> {
        if let Some(packument) = self.fresh(name) {
            return Ok(packument);
        }
        // By name, into a fixed number of places: two names that share one merely wait for each other.
        let place = name.as_str().bytes().fold(0_usize, |h, b| h.wrapping_mul(31).wrapping_add(usize::from(b))) % REQUESTS_MAX;
        let _turn = self.turns[place].lock().await;
        if let Some(packument) = self.fresh(name) {
            return Ok(packument);
        }
        let fetched = match self.fetch_packument(name.as_str()).await {
            Ok(body) => body,
            Err(error @ ResolveError::Registry { .. }) => {
                return self.packuments.get(name.as_str()).map(|(packument, _)| packument).ok_or(error);
            }
            Err(error) => return Err(error),
        };
        let parsed = serde_json::from_slice(&fetched);
        let packument: Packument = parsed.map_err(|e| ResolveError::Registry {
            module: name.to_string(),
            detail: format!("its description cannot be read: {e}"),
        })?;
        let packument = Arc::new(packument);
        self.packuments.insert(name.to_string(), (Arc::clone(&packument), Instant::now()));
        Ok(packument)
    }
}

/// The error without the address, which may name what a tenant need not know.
pub(crate) fn plain(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        "it did not answer in time".into()
    } else if error.is_connect() {
        "it cannot be reached".into()
    } else {
        "its answer broke off".into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read() {
        assert_eq!(parse_time_s("1970-01-01T00:00:00.000Z"), Some(0));
        assert_eq!(parse_time_s("2020-02-29T12:34:56.789Z"), Some(1_582_979_696));
        assert_eq!(parse_time_s("2000-01-01T00:00:00Z"), Some(946_684_800));
        for bad in ["", "yesterday", "2020-13-01T00:00:00Z", "2020-01-01"] {
            assert_eq!(parse_time_s(bad), None, "{bad}");
        }
    }
}
