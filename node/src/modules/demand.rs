//! Which modules are wanted on this node, and with which others: counts that halve every ten minutes, so that what was popular yesterday
//! is not today. The sets worth loading ahead are found greedily, as frequent item sets are: each grows by what most starts want with it.

use hearth_model::{BuildKey, ResolvedModule};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::{Duration, Instant},
};

const HALF_LIFE: Duration = Duration::from_secs(600);
/// Sets that are remembered; the least wanted goes first.
const SETS_MAX: usize = 256;
/// Modules are popular together when more than one start in the last minutes wanted all of them.
const POPULAR_FROM: f64 = 1.5;

#[derive(Debug, Default)]
pub(super) struct Demand {
    sets: HashMap<Vec<BuildKey>, Wanted>,
}

#[derive(Debug)]
struct Wanted {
    count: f64,
    at: Instant,
    modules: Vec<ResolvedModule>,
}

impl Wanted {
    fn count_at(&self, now: Instant) -> f64 {
        self.count * 0.5_f64.powf((now - self.at).as_secs_f64() / HALF_LIFE.as_secs_f64())
    }
}

impl Demand {
    pub fn note(&mut self, modules: &[ResolvedModule], now: Instant) {
        let mut key: Vec<_> = modules.iter().map(|m| m.build.clone()).collect();
        key.sort();
        if !self.sets.contains_key(&key) && self.sets.len() >= SETS_MAX {
            let least = self.sets.iter().min_by(|(_, a), (_, b)| a.count_at(now).total_cmp(&b.count_at(now)));
            if let Some(least) = least.map(|(key, _)| key.clone()) {
                self.sets.remove(&least);
            }
        }
        let wanted = self.sets.entry(key).or_insert_with(|| Wanted { count: 0.0, at: now, modules: modules.to_vec() });
        wanted.count = wanted.count_at(now) + 1.0;
        wanted.at = now;
    }

    /// Sets that save the most starts the most modules, best first. A start is served by a set whose modules are all among its own, with the
    /// same peers; `fits` says whether a set is small enough.
    pub fn popular(&self, max: usize, now: Instant, fits: impl Fn(&[ResolvedModule]) -> bool) -> Vec<Vec<ResolvedModule>> {
        let sets = self.sets.values();
        let mut open: Vec<_> = sets.map(|w| Open { count: w.count_at(now), modules: &w.modules, served: 0 }).collect();
        let mut chosen = Vec::new();
        while chosen.len() < max {
            let Some(set) = best(&open, &fits) else { break };
            for start in open.iter_mut().filter(|start| start.has_all(&set)) {
                start.served = start.served.max(set.len());
            }
            open.retain(|start| start.served < start.modules.len());
            chosen.push(set);
        }
        chosen
    }
}

/// Starts with the same modules, of which `served` would be loaded ahead by what has been chosen.
struct Open<'a> {
    count: f64,
    modules: &'a [ResolvedModule],
    served: usize,
}

impl Open<'_> {
    fn has_all(&self, set: &[ResolvedModule]) -> bool {
        set.iter().all(|wanted| self.modules.iter().any(|m| m.build == wanted.build))
    }

    /// A module with all peers that it reaches here, without what `set` has.
    fn with_peers(&self, module: &ResolvedModule, set: &[ResolvedModule]) -> BTreeMap<BuildKey, ResolvedModule> {
        let mut reached = BTreeMap::new();
        let mut open = vec![module];
        while let Some(module) = open.pop() {
            if reached.insert(module.build.clone(), module.clone()).is_none() {
                open.extend(self.modules.iter().filter(|m| module.peers.contains(&m.spec.name)));
            }
        }
        reached.retain(|build, _| set.iter().all(|m| m.build != *build));
        reached
    }
}

/// A way to grow a set.
#[derive(Default)]
struct Addition {
    modules: Vec<ResolvedModule>,
    /// Starts that want the set so grown.
    count: f64,
    /// Modules that it saves them, beyond what has been chosen.
    saved: f64,
}

/// Grows a set by what saves most beside it, and gives the stage that saves most of all.
fn best(open: &[Open<'_>], fits: &impl Fn(&[ResolvedModule]) -> bool) -> Option<Vec<ResolvedModule>> {
    let mut within: Vec<&Open<'_>> = open.iter().collect();
    let mut set: Vec<ResolvedModule> = Vec::new();
    let mut best = (0.0, None);
    loop {
        let mut additions: BTreeMap<Vec<BuildKey>, Addition> = BTreeMap::new();
        for start in &within {
            let wanted = start.modules.iter().map(|module| start.with_peers(module, &set)).filter(|more| !more.is_empty());
            let each: BTreeSet<Vec<BuildKey>> = wanted
                .map(|more| {
                    let key: Vec<_> = more.keys().cloned().collect();
                    additions.entry(key.clone()).or_default().modules = more.into_values().collect();
                    key
                })
                .collect();
            for key in each {
                let addition = additions.entry(key).or_default();
                addition.count += start.count;
                addition.saved += start.count * (set.len() + addition.modules.len()).saturating_sub(start.served) as f64;
            }
        }
        let mut additions: Vec<_> = additions.into_values().filter(|more| more.count >= POPULAR_FROM).collect();
        additions.sort_by(|a, b| b.saved.total_cmp(&a.saved).then(b.count.total_cmp(&a.count)));
        let grown = |more: &Addition| set.iter().chain(&more.modules).cloned().collect::<Vec<_>>();
        let Some((next, saved)) = additions.iter().map(|more| (grown(more), more.saved)).find(|(next, _)| fits(next)) else {
            return best.1;
        };
        set = next;
        within.retain(|start| start.has_all(&set));
        if saved >= POPULAR_FROM && best.0 < saved {
            best = (saved, Some(set.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(name: &str, build: &str, peers: &[&str]) -> ResolvedModule {
        ResolvedModule {
            spec: format!("{name}@1.0.0").parse().unwrap(),
            build: BuildKey(build.to_owned()),
            peers: peers.iter().map(|p| p.parse().unwrap()).collect(),
            direct: true,
        }
    }

    fn set(n: usize) -> Vec<ResolvedModule> {
        vec![module("lodash", &n.to_string(), &[])]
    }

    fn builds(sets: Vec<Vec<ResolvedModule>>) -> Vec<Vec<String>> {
        let sorted = |set: Vec<ResolvedModule>| set.into_iter().map(|m| m.build.0).collect::<BTreeSet<_>>().into_iter().collect();
        sets.into_iter().map(sorted).collect()
    }

    #[test]
    fn the_most_wanted_come_first_and_fade() {
        let (mut demand, now) = (Demand::default(), Instant::now());
        for _ in 0..3 {
            demand.note(&set(1), now);
        }
        demand.note(&set(2), now);
        demand.note(&set(2), now);
        demand.note(&set(3), now);
        assert_eq!(demand.popular(5, now, |_| true), [set(1), set(2)]);
        assert_eq!(demand.popular(1, now, |s| s[0].build.0 != "1"), [set(2)]);
        assert!(demand.popular(5, now + HALF_LIFE * 2, |_| true).is_empty());
    }

    #[test]
    fn what_many_share_is_popular_though_no_two_want_the_same() {
        let (mut demand, now) = (Demand::default(), Instant::now());
        let of = |names: &[&str]| names.iter().map(|name| module(name, name, &[])).collect::<Vec<_>>();
        for own in ["a", "b", "c"] {
            demand.note(&of(&["express", "lodash", own]), now);
        }
        demand.note(&of(&["express", "d"]), now);
        demand.note(&of(&["axios"]), now);
        demand.note(&of(&["axios"]), now);
        // Three starts are saved two modules each, and two starts one; the fourth alone is not many.
        assert_eq!(builds(demand.popular(3, now, |_| true)), [vec!["express", "lodash"], vec!["axios"]]);
        demand.note(&of(&["express", "e"]), now);
        assert_eq!(builds(demand.popular(3, now, |_| true)), [vec!["express", "lodash"], vec!["express"], vec!["axios"]]);
        assert_eq!(builds(demand.popular(1, now, |set| set.len() == 1)), [["express"]], "what does not fit is left out");
    }

    #[test]
    fn a_module_comes_with_the_peers_that_it_was_wanted_with() {
        let (mut demand, now) = (Demand::default(), Instant::now());
        let app = |react: &str| vec![module("react", react, &[]), module("react-dom", "dom", &["react"])];
        demand.note(&app("react-18"), now);
        demand.note(&app("react-19"), now);
        assert!(demand.popular(5, now, |_| true).is_empty(), "no two starts can have the same react-dom");
        demand.note(&app("react-19"), now);
        assert_eq!(builds(demand.popular(5, now, |_| true)), [["dom", "react-19"]]);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (mut demand, now) = (Demand::default(), Instant::now());
        for n in 0..SETS_MAX + 50 {
            demand.note(&set(n), now);
        }
        assert_eq!(demand.sets.len(), SETS_MAX);
    }
}
