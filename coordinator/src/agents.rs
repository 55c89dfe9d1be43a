//! The coordinator's side of the node agents. They dial us for enrolment, orders and reports; we dial
//! them for traffic and logs, by `connect` alone.

pub(crate) mod connect;
pub(crate) mod enrol;
mod identity;
pub(crate) mod orders;
pub(crate) mod registry;
pub(crate) mod report;
pub(crate) mod stopping;

#[cfg(test)]
mod tests;
