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
/// Starts with more modules than this teach nothing, so that what is learned is found in milliseconds.
const MODULES_MAX: usize = 24;
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

    /// What is remembered, to be looked at where nobody waits for it.
    pub fn starts(&self, now: Instant) -> Vec<Starts> {
        let few = self.sets.values().filter(|wanted| wanted.modules.len() <= MODULES_MAX);
        few.map(|wanted| Starts { count: wanted.count_at(now), modules: wanted.modules.clone() }).collect()
    }
}

/// Starts that wanted the same modules.
#[derive(Debug)]
pub(super) struct Starts {
    count: f64,
    modules: Vec<ResolvedModule>,
}

/// Sets that save the most starts the most modules, at most `max`, best first. A start is served by a set whose modules are all among its own,
/// with the same peers; `fits` says whether a set is small enough.
pub(super) fn popular(starts: &[Starts], max: usize, fits: impl Fn(&[ResolvedModule]) -> bool) -> Vec<Vec<ResolvedModule>> {
    let mut known: HashMap<&BuildKey, usize> = HashMap::new();
    let mut modules: Vec<&ResolvedModule> = Vec::new();
    for module in starts.iter().flat_map(|s| &s.modules) {
        known.entry(&module.build).or_insert_with(|| {
            modules.push(module);
            modules.len() - 1
        });
    }
    let mut open: Vec<_> = starts.iter().map(|s| Open { count: s.count, units: units(&s.modules, &known), served: 0 }).collect();
    let of = |set: &BTreeSet<usize>| set.iter().map(|&at| modules[at].clone()).collect::<Vec<_>>();
    let fits = |set: &BTreeSet<usize>| fits(&of(set));
    let mut chosen = Vec::new();
    while chosen.len() < max {
        let Some(set) = best(&open, &fits) else { break };
        for start in open.iter_mut().filter(|start| start.is_served_by(&set)) {
            start.served = start.served.max(set.len());
        }
        open.retain(|start| start.served < start.units.len());
        chosen.push(of(&set));
    }
    chosen
}

/// Each module with all peers that it reaches in a start.
fn units(modules: &[ResolvedModule], known: &HashMap<&BuildKey, usize>) -> BTreeMap<usize, BTreeSet<usize>> {
    let by_name: HashMap<_, _> = modules.iter().map(|m| (&m.spec.name, m)).collect();
    let unit = |module: &ResolvedModule| {
        let mut reached = BTreeSet::new();
        let mut open = vec![module];
        while let Some(module) = open.pop() {
            if reached.insert(known[&module.build]) {
                open.extend(module.peers.iter().filter_map(|peer| by_name.get(peer)).copied());
            }
        }
        reached
    };
    modules.iter().map(|m| (known[&m.build], unit(m))).collect()
}

/// Starts of which `served` modules would be loaded ahead by what has been chosen.
struct Open {
    count: f64,
    units: BTreeMap<usize, BTreeSet<usize>>,
    served: usize,
}

impl Open {
    /// A module with other peers is another one.
    fn is_served_by(&self, set: &BTreeSet<usize>) -> bool {
        set.iter().all(|module| self.units.get(module).is_some_and(|unit| unit.is_subset(set)))
    }
}

/// Grows a set by what saves most beside it, and gives the stage that saves most of all.
fn best(open: &[Open], fits: &impl Fn(&BTreeSet<usize>) -> bool) -> Option<BTreeSet<usize>> {
    let mut within: Vec<&Open> = open.iter().collect();
    let mut set = BTreeSet::new();
    let mut best = (0.0, None);
    loop {
        // The set so grown: how many starts want it, and how many modules it saves them beyond what has been chosen.
        let mut grown: BTreeMap<BTreeSet<usize>, (f64, f64)> = BTreeMap::new();
        for start in &within {
            let wanted = start.units.iter().filter(|(module, _)| !set.contains(*module));
            for next in wanted.map(|(_, unit)| &set | unit).collect::<BTreeSet<_>>() {
                let saved = start.count * next.len().saturating_sub(start.served) as f64;
                let sums = grown.entry(next).or_default();
                *sums = (sums.0 + start.count, sums.1 + saved);
            }
        }
        let mut grown: Vec<_> = grown.into_iter().filter(|(_, (count, _))| *count >= POPULAR_FROM).collect();
        grown.sort_by(|(_, (count_a, saved_a)), (_, (count_b, saved_b))| {
            saved_b.total_cmp(saved_a).then(count_b.total_cmp(count_a))
        });
        let Some((next, (_, saved))) = grown.into_iter().find(|(next, _)| fits(next)) else { return best.1 };
        set = next;
        within.retain(|start| start.is_served_by(&set));
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

    /// The popular sets of a node that was asked as told.
    fn popular(demand: &Demand, max: usize, now: Instant, fits: impl Fn(&[ResolvedModule]) -> bool) -> Vec<Vec<ResolvedModule>> {
        super::popular(&demand.starts(now), max, fits)
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
        assert_eq!(popular(&demand, 5, now, |_| true), [set(1), set(2)]);
        assert_eq!(popular(&demand, 1, now, |s| s[0].build.0 != "1"), [set(2)]);
        assert!(popular(&demand, 5, now + HALF_LIFE * 2, |_| true).is_empty());
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
        assert_eq!(builds(popular(&demand, 3, now, |_| true)), [vec!["express", "lodash"], vec!["axios"]]);
        demand.note(&of(&["express", "e"]), now);
        assert_eq!(builds(popular(&demand, 3, now, |_| true)), [vec!["express", "lodash"], vec!["express"], vec!["axios"]]);
        assert_eq!(builds(popular(&demand, 1, now, |set| set.len() == 1)), [["express"]], "what does not fit is left out");
    }

    #[test]
    fn a_module_comes_with_the_peers_that_it_was_wanted_with() {
        let (mut demand, now) = (Demand::default(), Instant::now());
        let app = |react: &str| vec![module("react", react, &[]), module("react-dom", "dom", &["react"])];
        demand.note(&app("react-18"), now);
        demand.note(&app("react-19"), now);
        assert!(popular(&demand, 5, now, |_| true).is_empty(), "no two starts can have the same react-dom");
        demand.note(&app("react-19"), now);
        assert_eq!(builds(popular(&demand, 5, now, |_| true)), [["dom", "react-19"]]);
    }

    #[test]
    fn peers_that_a_start_does_not_share_make_another_module() {
        let (mut demand, now) = (Demand::default(), Instant::now());
        for _ in 0..2 {
            demand.note(&[module("m", "m", &["p"])], now);
            demand.note(&[module("m", "m", &["p"]), module("p", "p", &[])], now);
        }
        assert_eq!(builds(popular(&demand, 5, now, |_| true)), [vec!["m", "p"], vec!["m"]]);
    }

    #[test]
    fn all_that_can_be_remembered_is_looked_through_in_bounded_work() {
        let (mut demand, now) = (Demand::default(), Instant::now());
        let names: Vec<String> = (0..MODULES_MAX).map(|n| format!("m{n}")).collect();
        let peers: Vec<&str> = names.iter().map(String::as_str).collect();
        for n in 0..SETS_MAX {
            let own = module(&names[0], &format!("own{n}"), &peers);
            let shared = names[1..].iter().map(|name| module(name, name, &peers[1..]));
            demand.note(&[own].into_iter().chain(shared).collect::<Vec<_>>(), now);
        }
        demand.note(&vec![module("lodash", "x", &[]); MODULES_MAX + 1], now);
        let sets = popular(&demand, 2, now, |_| true);
        assert_eq!(sets.iter().map(Vec::len).collect::<Vec<_>>(), [MODULES_MAX - 1]);
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
