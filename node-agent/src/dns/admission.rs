//! Who may be served at the same time: so many at all, so many from one address.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

/// Questions and connections that are served at once.
const TOTAL: usize = 1024;
/// Of these from one address, which is one instance.
const PER_SOURCE: usize = 64;

/// Counts who is being served.
#[derive(Debug)]
pub(super) struct Admission {
    served: Mutex<Served>,
    total: usize,
    per_source: usize,
}

#[derive(Debug, Default)]
struct Served {
    total: usize,
    by_source: HashMap<IpAddr, usize>,
}

/// One place; given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    admission: Arc<Admission>,
    source: IpAddr,
}

impl Default for Admission {
    fn default() -> Self {
        Self::new(TOTAL, PER_SOURCE)
    }
}

impl Admission {
    fn new(total: usize, per_source: usize) -> Self {
        Self {
            served: Mutex::default(),
            total,
            per_source,
        }
    }

    /// A place for this source, or none: whoever gets none is not answered and asks again.
    pub(super) fn admit(self: &Arc<Self>, source: IpAddr) -> Option<Place> {
        let mut served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        let of_source = served.by_source.get(&source).copied().unwrap_or_default();
        if served.total >= self.total || of_source >= self.per_source {
            return None;
        }
        served.total += 1;
        served.by_source.insert(source, of_source + 1);
        Some(Place {
            admission: Arc::clone(self),
            source,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut served = self.admission.served.lock().unwrap_or_else(PoisonError::into_inner);
        served.total -= 1;
        if let Some(of_source) = served.by_source.get_mut(&self.source) {
            *of_source -= 1;
            if *of_source == 0 {
                served.by_source.remove(&self.source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn admission__should_keep_places_for_others_when_one_source_floods() {
        let admission = Arc::new(Admission::new(3, 2));
        let [one, two, three] = [[10, 0, 0, 1], [10, 0, 0, 2], [10, 0, 0, 3]].map(IpAddr::from);
        let first = admission.admit(one).unwrap();
        let _second = admission.admit(one).unwrap();
        assert!(admission.admit(one).is_none());
        let _third = admission.admit(two).unwrap();
        assert!(admission.admit(three).is_none());
        drop(first);
        let fourth = admission.admit(three).unwrap();
        drop(fourth);
        assert!(!admission.served.lock().unwrap().by_source.contains_key(&three));
        assert!(admission.admit(one).is_some());
    }
}
