//! Who is called: tenants and their functions, or a list of URLs, as one numbered table of prepared calls.

use crate::{
    kinds::{KINDS, Mix},
    net::{Destination, Payload},
};
use anyhow::{Context as _, bail};
use http::{HeaderMap, HeaderValue, Method, Uri, header};
use std::{collections::HashMap, path::Path, sync::Arc};

/// Functions of one population; the table of calls takes about 250 bytes for each.
pub const FUNCTIONS_MAX: usize = 2_000_000;
/// URLs of a list.
pub const URLS_MAX: usize = 100_000;
/// The container of every tenant.
pub const CONTAINER: &str = "main";

/// One prepared call.
#[derive(Debug, Clone)]
pub struct Call {
    /// Which destination.
    pub place: u16,
    /// Whose function it is, numbered.
    pub tenant: u32,
    /// Of which kind, or 0.
    pub kind: u8,
    /// The path and query.
    pub uri: Uri,
    /// What is the same for many calls.
    pub form: Arc<Form>,
    /// What the function says about itself, where it does.
    pub id: Option<Box<str>>,
}

/// What many calls share.
#[derive(Debug, Clone)]
pub struct Form {
    /// The method.
    pub method: Method,
    /// All headers, `host` included.
    pub headers: HeaderMap,
    /// The body.
    pub body: Payload,
}

/// Everybody who is called.
#[derive(Debug, Clone)]
pub struct Population {
    /// The tenants' names; for a list of URLs, their texts.
    pub tenants: Vec<String>,
    /// The calls; those of one tenant follow each other.
    pub calls: Vec<Call>,
    /// Functions of each tenant.
    pub functions_per_tenant: u32,
    /// Where calls go.
    pub destinations: Vec<Destination>,
    /// Names of the kinds that occur, by [`Call::kind`].
    pub kinds: Vec<&'static str>,
}

/// What decides a population of tenants, and with that their names: the same wish gives the same tenants, another wish others.
#[derive(Debug, Clone)]
pub struct Wish<'a> {
    /// How the tenants' names start.
    pub prefix: &'a str,
    /// Which of several populations of the same wish; cold starts need tenants never seen.
    pub round: u32,
    /// How many tenants.
    pub tenants: u32,
    /// How many functions each.
    pub functions_per_tenant: u32,
    /// Which functions.
    pub mix: &'a Mix,
    /// The seed.
    pub seed: u64,
    /// Headers of every call.
    pub headers: &'a HeaderMap,
    /// What is sent to functions that take a body.
    pub body: &'a Payload,
}

impl Population {
    /// Tenants on a platform.
    ///
    /// # Errors
    /// Too many, or a name that is not valid.
    pub fn of_tenants(wish: &Wish<'_>, target: &Destination) -> anyhow::Result<Self> {
        let total = wish.tenants as usize * wish.functions_per_tenant as usize;
        if total == 0 || total > FUNCTIONS_MAX {
            bail!(
                "{} tenants with {} functions each are asked for; between 1 and {FUNCTIONS_MAX} functions are possible",
                wish.tenants,
                wish.functions_per_tenant
            );
        }
        check_prefix(wish.prefix)?;
        let stem = format!("{}-{:06x}-{}", wish.prefix, digest(wish) & 0x00ff_ffff, wish.round);
        let tenants: Vec<String> = (0..wish.tenants).map(|i| format!("{stem}-{i}")).collect();
        let kinds = wish.mix.assign(total, wish.seed);
        let host = HeaderValue::from_str(target.authority.as_str())?;
        let forms: Vec<Arc<Form>> = KINDS
            .iter()
            .map(|kind| {
                let mut headers = wish.headers.clone();
                headers.entry(header::HOST).or_insert_with(|| host.clone());
                let body = if kind.takes_body { wish.body.clone() } else { Payload::Empty };
                Arc::new(Form { method: kind.method.clone(), headers, body })
            })
            .collect();
        let mut calls = Vec::with_capacity(total);
        for (index, kind) in kinds.into_iter().enumerate() {
            let tenant = index / wish.functions_per_tenant as usize;
            let path = format!("{}/{CONTAINER}/{}", tenants[tenant], function_name(index % wish.functions_per_tenant as usize));
            let uri = Uri::try_from(format!("/run/{path}{}", KINDS[usize::from(kind)].query))?;
            let form = Arc::clone(&forms[usize::from(kind)]);
            calls.push(Call { place: 0, tenant: tenant as u32, kind, uri, form, id: Some(path.into()) });
        }
        Ok(Self {
            tenants,
            calls,
            functions_per_tenant: wish.functions_per_tenant,
            destinations: vec![target.clone()],
            kinds: KINDS.iter().map(|k| k.name).collect(),
        })
    }

    /// The URLs in a file: one a line, a method before it where it is not GET, `#` for comments. Each URL counts as a tenant of its own, except that those of one
    /// tenant of the platform are its functions' and count together.
    ///
    /// # Errors
    /// Not readable, not URLs, or too many.
    pub async fn of_urls(file: &Path, headers: &HeaderMap, body: &Payload) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(file).with_context(|| format!("reading the list {}", file.display()))?;
        let mut list = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.split_once(" #").map_or(line, |(before, _)| before).trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if list.len() == URLS_MAX {
                bail!("{} has more than {URLS_MAX} URLs", file.display());
            }
            let (method, url) = line.split_once(' ').unwrap_or(("GET", line));
            let at = || format!("{}, line {}: {line:?}", file.display(), number + 1);
            let method = Method::from_bytes(method.as_bytes()).with_context(at)?;
            list.push((method, url.trim().parse::<Uri>().with_context(at)?));
        }
        if list.is_empty() {
            bail!("{} has no URL", file.display());
        }
        Self::of_list(&list, headers, body).await
    }

    /// These URLs.
    ///
    /// # Errors
    /// A URL without a host, or whose host does not resolve.
    pub async fn of_list(list: &[(Method, Uri)], headers: &HeaderMap, body: &Payload) -> anyhow::Result<Self> {
        let mut population =
            Self { tenants: Vec::new(), calls: Vec::new(), functions_per_tenant: 1, destinations: Vec::new(), kinds: vec!["url"] };
        let mut places = HashMap::<String, u16>::new();
        let mut forms = HashMap::<(u16, Method), Arc<Form>>::new();
        let mut tenants = HashMap::<String, u32>::new();
        for (method, url) in list {
            let origin = format!("{}://{}", url.scheme_str().unwrap_or(""), url.authority().map_or("", |a| a.as_str()));
            let place = match places.get(&origin) {
                Some(place) => *place,
                None => {
                    population.destinations.push(Destination::of(url).await?);
                    let place = u16::try_from(population.destinations.len() - 1).context("more than 65,536 hosts")?;
                    places.insert(origin, place);
                    place
                }
            };
            let tenant_name = tenant_of(url).unwrap_or_else(|| url.to_string());
            let tenant = *tenants.entry(tenant_name.clone()).or_insert_with(|| {
                population.tenants.push(tenant_name);
                population.tenants.len() as u32 - 1
            });
            let form = forms.entry((place, method.clone())).or_insert_with(|| {
                let authority = &population.destinations[usize::from(place)].authority;
                let mut headers = headers.clone();
                if let Ok(host) = HeaderValue::from_str(authority.as_str()) {
                    headers.entry(header::HOST).or_insert(host);
                }
                let sends = matches!(*method, Method::POST | Method::PUT | Method::PATCH);
                Arc::new(Form { method: method.clone(), headers, body: if sends { body.clone() } else { Payload::Empty } })
            });
            let path = url.path_and_query().map_or("/", |p| p.as_str());
            let call = Call { place, tenant, kind: 0, uri: Uri::try_from(path)?, form: Arc::clone(form), id: None };
            population.calls.push(call);
        }
        Ok(population)
    }

    /// The functions of tenants `from..to`, cut to those that there are.
    #[must_use]
    pub fn functions_of(&self, from: u32, to: Option<u32>) -> Vec<u32> {
        let within = |tenant: u32| tenant >= from && to.is_none_or(|to| tenant < to);
        (0..self.calls.len() as u32).filter(|f| within(self.calls[*f as usize].tenant)).collect()
    }
}

/// The name of a tenant's function with this number.
#[must_use]
pub fn function_name(ordinal: usize) -> String {
    format!("f{ordinal}")
}

/// `acme` of `/run/acme/main/hello`.
fn tenant_of(url: &Uri) -> Option<String> {
    let mut parts = url.path().strip_prefix("/run/")?.split('/');
    let tenant = parts.next().filter(|t| !t.is_empty())?;
    parts.nth(1).is_some().then(|| tenant.to_owned())
}

/// A tenant's name is at most 63 characters of `a-z0-9-`; what follows the prefix takes up to 25.
pub fn check_prefix(prefix: &str) -> anyhow::Result<()> {
    let fine = (1..=36).contains(&prefix.len())
        && prefix.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !prefix.starts_with('-');
    if !fine {
        bail!("the prefix {prefix:?} must be 1 to 36 characters of a-z, 0-9 and -, not starting with -");
    }
    Ok(())
}

/// FNV-1a over all that decides which functions the tenants have.
fn digest(wish: &Wish<'_>) -> u64 {
    let mut text = format!("{} {} {:?}", wish.seed, wish.functions_per_tenant, wish.mix.0);
    for (kind, _) in &wish.mix.0 {
        text.push_str(KINDS[usize::from(*kind)].source);
    }
    // With several kinds the number of tenants decides who gets which.
    if wish.mix.0.len() > 1 {
        text.push_str(&wish.tenants.to_string());
    }
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish<'a>(mix: &'a Mix, headers: &'a HeaderMap) -> Wish<'a> {
        Wish { prefix: "loadtest", round: 0, tenants: 3, functions_per_tenant: 2, mix, seed: 1, headers, body: &Payload::Empty }
    }

    #[test]
    fn the_same_wish_gives_the_same_tenants_and_another_wish_others() {
        let (mix, other, headers) = (Mix::default(), "cpu".parse::<Mix>().unwrap(), HeaderMap::new());
        let target = Destination::unix("/nowhere");
        let one = Population::of_tenants(&wish(&mix, &headers), &target).unwrap();
        assert_eq!(one.tenants, Population::of_tenants(&wish(&mix, &headers), &target).unwrap().tenants);
        assert_eq!(one.calls.len(), 6);
        assert_eq!(one.calls[5].uri.path(), format!("/run/{}/main/f1", one.tenants[2]));
        assert_eq!(one.functions_of(1, Some(2)), [2, 3]);
        assert_eq!(one.functions_of(1, None), [2, 3, 4, 5]);
        let another = Population::of_tenants(&wish(&other, &headers), &target).unwrap();
        assert_ne!(one.tenants[0], another.tenants[0]);
        let later = Population::of_tenants(&Wish { round: 1, ..wish(&mix, &headers) }, &target).unwrap();
        assert!(later.tenants.iter().all(|t| !one.tenants.contains(t)));
    }

    #[test]
    fn bounds_of_a_population() {
        let (mix, headers, target) = (Mix::default(), HeaderMap::new(), Destination::unix("/nowhere"));
        for (tenants, functions) in [(0, 1), (1, 0), (2_000_001, 1)] {
            let wish = Wish { tenants, functions_per_tenant: functions, ..wish(&mix, &headers) };
            assert!(Population::of_tenants(&wish, &target).is_err());
        }
        for bad in ["", "-a", "Load", "a_b", &"x".repeat(37)] {
            assert!(check_prefix(bad).is_err(), "{bad}");
        }
        assert!(check_prefix(&"x".repeat(36)).is_ok());
    }

    #[tokio::test]
    async fn urls_of_one_tenant_count_together() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(
            file.path(),
            "# a list\nhttp://127.0.0.1:1/run/acme/main/a\nPOST http://127.0.0.1:1/run/acme/main/b?x=1 # hook\n\nhttp://127.0.0.1:2/ping\n",
        )
        .unwrap();
        let population = Population::of_urls(file.path(), &HeaderMap::new(), &Payload::sized(3, false)).await.unwrap();
        assert_eq!(population.tenants, ["acme", "http://127.0.0.1:2/ping"]);
        assert_eq!(population.destinations.len(), 2);
        assert_eq!(population.calls[1].form.body.len(), 3);
        assert_eq!(population.calls[1].uri, "/run/acme/main/b?x=1");
        std::fs::write(file.path(), "ftp://x/\n").unwrap();
        assert!(Population::of_urls(file.path(), &HeaderMap::new(), &Payload::Empty).await.is_err());
        std::fs::write(file.path(), "# nothing\n").unwrap();
        assert!(Population::of_urls(file.path(), &HeaderMap::new(), &Payload::Empty).await.is_err());
    }
}
