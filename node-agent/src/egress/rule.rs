//! The vocabulary in which the skeleton is written: short names for the types of the crate
//! `nftables`, and raw JSON for the few things its schema cannot say (verdict maps, counters that
//! belong to a set, statements inside a set update).

use nftables::{
    expr::{
        BinaryOperation, CT, Expression, Fib, FibFlag, FibResult, Map, Meta, MetaKey, NamedExpression, Payload, PayloadField,
    },
    schema::{Chain, Element, NfCmd, NfListObject, Rule, Set, SetType, SetTypeValue},
    stmt::{Counter, JumpTarget, Mangle, Match, Operator, Reject, RejectType, Statement, VerdictMap},
    types::{NfChainPolicy, NfChainType, NfFamily, NfHook, RejectCode},
};
use serde::Serialize;
use serde_json::{Value, json};

/// Our only table, in the family that sees both IPv4 and IPv6.
pub(super) const TABLE: &str = "crabshack";
/// Its family as nft writes it.
pub(super) const FAMILY: &str = "inet";

/// One command of a transaction.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub(super) enum Command {
    /// What the crate's schema can express.
    Typed(NfCmd<'static>),
    /// What it cannot.
    Raw(Value),
}

/// The document that nft reads; it applies all of it or nothing.
pub(super) fn document(commands: &[Command]) -> Result<String, serde_json::Error> {
    #[derive(Serialize)]
    struct Document<'a> {
        nftables: &'a [Command],
    }
    serde_json::to_string(&Document { nftables: commands })
}

pub(super) fn meta(key: MetaKey) -> Expression<'static> {
    Expression::Named(NamedExpression::Meta(Meta { key }))
}

pub(super) fn ct(key: &'static str) -> Expression<'static> {
    Expression::Named(NamedExpression::CT(CT {
        key: key.into(),
        ..CT::default()
    }))
}

pub(super) fn payload(protocol: &'static str, field: &'static str) -> Expression<'static> {
    Expression::Named(NamedExpression::Payload(Payload::PayloadField(PayloadField {
        protocol: protocol.into(),
        field: field.into(),
    })))
}

/// What kind of address the destination is for this node.
pub(super) fn destination_type() -> Expression<'static> {
    Expression::Named(NamedExpression::Fib(Fib {
        result: FibResult::Type,
        flags: [FibFlag::Daddr].into(),
    }))
}

pub(super) fn concat(parts: Vec<Expression<'static>>) -> Expression<'static> {
    Expression::Named(NamedExpression::Concat(parts))
}

pub(super) fn text(value: impl Into<String>) -> Expression<'static> {
    Expression::String(value.into().into())
}

pub(super) fn number(value: u32) -> Expression<'static> {
    Expression::Number(value)
}

/// The value that a map holds for a key.
pub(super) fn lookup(key: Expression<'static>, map: &'static str) -> Expression<'static> {
    Expression::Named(NamedExpression::Map(Box::new(Map { key, data: text(map) })))
}

pub(super) fn any_of(parts: Vec<Expression<'static>>) -> Expression<'static> {
    Expression::BinaryOperation(Box::new(BinaryOperation::OR(parts)))
}

pub(super) fn is(left: Expression<'static>, right: Expression<'static>) -> Statement<'static> {
    compare(left, Operator::EQ, right)
}

pub(super) fn is_not(left: Expression<'static>, right: Expression<'static>) -> Statement<'static> {
    compare(left, Operator::NEQ, right)
}

/// A connection tracking word (`state`, `status`) holds this bit.
pub(super) fn tracked(key: &'static str, bit: &'static str) -> Statement<'static> {
    compare(ct(key), Operator::IN, text(bit))
}

fn compare(left: Expression<'static>, op: Operator, right: Expression<'static>) -> Statement<'static> {
    Statement::Match(Match { left, right, op })
}

pub(super) fn assign(key: Expression<'static>, value: Expression<'static>) -> Statement<'static> {
    Statement::Mangle(Mangle { key, value })
}

pub(super) fn goto(chain: &'static str) -> Statement<'static> {
    Statement::Goto(JumpTarget { target: chain.into() })
}

pub(super) fn dispatch(key: Expression<'static>, map: &'static str) -> Statement<'static> {
    Statement::VerdictMap(VerdictMap { key, data: text(map) })
}

pub(super) fn count(counter: &'static str) -> Statement<'static> {
    Statement::Counter(Counter::Named(counter.into()))
}

pub(super) fn accept() -> Statement<'static> {
    Statement::Accept(None)
}

pub(super) fn drop_it() -> Statement<'static> {
    Statement::Drop(None)
}

pub(super) fn leave() -> Statement<'static> {
    Statement::Return(None)
}

/// A TCP client learns at once that it is refused; by ICMP it would learn only after a second.
pub(super) fn reset() -> Statement<'static> {
    Statement::Reject(Some(Reject::new(Some(RejectType::TCPReset), None)))
}

pub(super) fn reject() -> Statement<'static> {
    Statement::Reject(Some(Reject::new(Some(RejectType::ICMPX), Some(RejectCode::AdminProhibited))))
}

pub(super) fn masquerade() -> Statement<'static> {
    Statement::Masquerade(None)
}

fn add(object: NfListObject<'static>) -> Command {
    Command::Typed(NfCmd::Add(object))
}

/// A chain that others go to.
pub(super) fn chain(name: &'static str) -> Command {
    add(NfListObject::Chain(plain_chain(name)))
}

/// A chain that the kernel calls; what it does not judge passes on to other tables.
pub(super) fn base_chain(name: &'static str, kind: NfChainType, hook: NfHook, priority: i32) -> Command {
    add(NfListObject::Chain(Chain {
        _type: Some(kind),
        hook: Some(hook),
        prio: Some(priority),
        policy: Some(NfChainPolicy::Accept),
        ..plain_chain(name)
    }))
}

fn plain_chain(name: &'static str) -> Chain<'static> {
    Chain {
        family: NfFamily::INet,
        table: TABLE.into(),
        name: name.into(),
        ..Chain::default()
    }
}

pub(super) fn rule(chain: &'static str, statements: Vec<Statement<'static>>) -> Command {
    commented_rule(chain, statements, None)
}

pub(super) fn commented_rule(chain: &'static str, statements: Vec<Statement<'static>>, comment: Option<String>) -> Command {
    add(NfListObject::Rule(Rule {
        family: NfFamily::INet,
        table: TABLE.into(),
        chain: chain.into(),
        expr: statements.into(),
        comment: comment.map(Into::into),
        ..Rule::default()
    }))
}

/// A rule with a statement that the crate cannot say.
pub(super) fn raw_rule(chain: &'static str, statements: Value) -> Command {
    Command::Raw(json!({"add": {"rule": {"family": FAMILY, "table": TABLE, "chain": chain, "expr": statements}}}))
}

/// A set as the crate can say it, to be refined with `..`.
pub(super) fn set(name: &'static str, types: Vec<SetType>) -> Set<'static> {
    Set {
        family: NfFamily::INet,
        table: TABLE.into(),
        name: name.into(),
        set_type: match types.as_slice() {
            [single] => SetTypeValue::Single(*single),
            _ => SetTypeValue::Concatenated(types.into()),
        },
        ..Set::default()
    }
}

pub(super) fn add_set(set: Set<'static>) -> Command {
    add(NfListObject::Set(Box::new(set)))
}

/// A set whose elements count what matches them. One type is given as such: in a list of one, nft
/// takes it for a concatenation and later prints keys that it cannot read.
pub(super) fn counting_set(name: &'static str, kind: Value) -> Command {
    Command::Raw(json!({"add": {"set": {
        "family": FAMILY, "table": TABLE, "name": name, "type": kind, "stmt": [{"counter": null}],
    }}}))
}

/// A set that rules fill by themselves with the live connections of each key (nft makes it dynamic). A limit that belongs to
/// the set would be simpler, but each element added to such a set costs the network namespace a
/// reference to its connection tracking (seen on Linux 6.18): after some dozens nothing is tracked.
pub(super) fn counting_connections(name: &'static str) -> Command {
    add_set(Set {
        // Nobody but the agent makes bridges with our prefix.
        size: Some(65_535),
        ..set(name, vec![SetType::Ifname])
    })
}

/// A map from interface to something.
pub(super) fn interface_map(name: &'static str, value: &str) -> Command {
    Command::Raw(json!({"add": {"map": {"family": FAMILY, "table": TABLE, "name": name, "type": "ifname", "map": value}}}))
}

pub(super) fn counter(name: &'static str) -> Command {
    Command::Raw(json!({"add": {"counter": {"family": FAMILY, "table": TABLE, "name": name}}}))
}

pub(super) fn add_elements(set: &'static str, elements: Vec<Expression<'static>>) -> Command {
    add(NfListObject::Element(elements_of(set, elements)))
}

pub(super) fn delete_elements(set: &'static str, elements: Vec<Expression<'static>>) -> Command {
    Command::Typed(NfCmd::Delete(NfListObject::Element(elements_of(set, elements))))
}

fn elements_of(set: &'static str, elements: Vec<Expression<'static>>) -> Element<'static> {
    Element {
        family: NfFamily::INet,
        table: TABLE.into(),
        name: set.into(),
        elem: elements.into(),
    }
}
