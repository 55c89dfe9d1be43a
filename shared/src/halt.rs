//! Where the crash harness kills us. Inert unless the process was started with a halt point.
//!
//! Every action of every plan runs through [`Halt::around`], so a new action is in the harness by
//! construction. The process sends itself SIGKILL: nothing unwinds, nothing is flushed.

use std::{
    collections::HashMap,
    str::FromStr,
    sync::{Mutex, PoisonError},
};

/// Before or after an action.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moment {
    Before,
    After,
}

/// One place to die, written `before:NAME:N` or `after:NAME:N` (the N-th run of that action, from 1),
/// or `twice`, which runs every action two times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HaltPoint {
    /// Die around one run of one action.
    At {
        #[doc(hidden)]
        before: bool,
        #[doc(hidden)]
        action: String,
        #[doc(hidden)]
        occurrence: usize,
    },
    /// Run every action twice.
    Twice,
}

/// A halt point that is not of the documented form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a halt point is `twice`, `before:ACTION:N` or `after:ACTION:N`")]
pub struct InvalidHaltPoint;

impl FromStr for HaltPoint {
    type Err = InvalidHaltPoint;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "twice" {
            return Ok(Self::Twice);
        }
        let mut parts = text.split(':');
        let (Some(moment), Some(action), Some(occurrence), None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(InvalidHaltPoint);
        };
        let before = match moment {
            "before" => true,
            "after" => false,
            _ => return Err(InvalidHaltPoint),
        };
        let occurrence = occurrence.parse().map_err(|_| InvalidHaltPoint)?;
        Ok(Self::At {
            before,
            action: action.to_owned(),
            occurrence,
        })
    }
}

/// Wraps actions so that the harness can kill around them or repeat them.
#[derive(Debug, Default)]
pub struct Halt {
    point: Option<HaltPoint>,
    runs: Mutex<HashMap<String, usize>>,
}

impl Halt {
    /// With the point the process was started with, if any.
    pub fn new(point: Option<HaltPoint>) -> Self {
        Self {
            point,
            runs: Mutex::default(),
        }
    }

    /// Runs an action. Whoever calls this also logs the action's name: the harness kills around every
    /// name that it finds in the log.
    pub async fn around<T, E, F, Run>(&self, action: &'static str, run: F) -> Result<T, E>
    where
        F: Fn() -> Run,
        Run: Future<Output = Result<T, E>>,
    {
        let Some(point) = &self.point else { return run().await };
        let occurrence = {
            let mut runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
            let count = runs.entry(action.to_owned()).or_default();
            *count += 1;
            *count
        };
        die_if(point, Moment::Before, action, occurrence);
        if *point == HaltPoint::Twice {
            run().await?;
        }
        let result = run().await;
        die_if(point, Moment::After, action, occurrence);
        result
    }
}

fn die_if(point: &HaltPoint, moment: Moment, action: &str, now: usize) {
    let HaltPoint::At {
        before,
        action: wanted,
        occurrence,
    } = point
    else {
        return;
    };
    if *before == (moment == Moment::Before) && wanted == action && *occurrence == now {
        // If the signal cannot be sent, dying by abort is as sudden.
        if rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).is_err() {
            std::process::abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halt_point__should_read_its_three_forms() {
        assert_eq!("twice".parse(), Ok(HaltPoint::Twice));
        assert_eq!(
            "after:StartContainer:2".parse(),
            Ok(HaltPoint::At {
                before: false,
                action: "StartContainer".to_owned(),
                occurrence: 2
            })
        );
        for text in ["", "before", "before:X", "during:X:1", "before:X:y"] {
            assert_eq!(text.parse::<HaltPoint>(), Err(InvalidHaltPoint), "{text}");
        }
    }
}
