use crabshack_shared::agent_api::v1::{Desired, RegistryLogin};

use super::*;
use crate::{
    fixtures,
    fixtures::report,
    ledger::tests::{ledger, orders},
};

#[test]
fn ledger__should_remember_what_it_knows_of_images_across_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let login = RegistryLogin {
        host: "registry.example".to_owned(),
        username: "puller".to_owned(),
        password: "a-password-of-theirs".to_owned().into(),
    };
    let images = ImageOrders {
        allowed: vec!["a:1".parse().unwrap()],
        registries: vec![login],
    };
    let (first, second): (ImageReference, ImageReference) = ("a:1".parse().unwrap(), "a:2".parse().unwrap());
    let now = Utc::now();
    {
        let ledger = ledger(folder.path());
        let mut with_images = orders(1, Vec::new());
        with_images.images = Some(images.clone());
        ledger.receive(&with_images, &BTreeSet::new()).unwrap();
        // An older coordinator says nothing of images: what is known stands.
        ledger.receive(&orders(2, Vec::new()), &BTreeSet::new()).unwrap();
        ledger.note_pull(&first, now).unwrap();
        ledger.note_pull(&second, now).unwrap();
        ledger.note_unneeded(&first, Some(now)).unwrap();
        ledger.forget_pulled(&second).unwrap();
    }
    let ledger = ledger(folder.path());
    assert_eq!(*ledger.image_orders().borrow(), images);
    let known = Pulled {
        image: first,
        at: now,
        unneeded_since: Some(now),
    };
    assert_eq!(ledger.pulled(), [known]);
    let bytes = std::fs::read(folder.path().join("ledger.redb")).unwrap();
    let secret = b"a-password-of-theirs";
    assert!(!bytes.windows(secret.len()).any(|window| window == secret));
}

#[test]
fn ledger__should_remember_the_image_before_this_one_until_the_next_is_well() {
    let folder = tempfile::tempdir().unwrap();
    let mut order = fixtures::order(Desired::Running, 1);
    let (one, two, three) = ("a:1", "a:2", "a:3");
    let receive = |ledger: &Ledger, order: &mut crabshack_shared::agent_api::v1::InstanceOrder, image: &str| {
        order.spec.image = image.parse().unwrap();
        order.generation.counter += 1;
        ledger.receive(&orders(1, vec![order.clone()]), &BTreeSet::new()).unwrap();
    };
    let say = |ledger: &Ledger, order: &crabshack_shared::agent_api::v1::InstanceOrder, phase: Phase| {
        let mut seen = report(order.id, phase);
        seen.generation = Some(order.generation);
        ledger.note_well(&[seen]).unwrap();
    };
    let known = |ledger: &Ledger| {
        let well = ledger.well().remove(&order.id).unwrap();
        (well.with.to_string(), well.before.map(|before| before.to_string()))
    };
    {
        let ledger = ledger(folder.path());
        let mut order = order.clone();
        receive(&ledger, &mut order, one);
        say(&ledger, &order, Phase::Ready);
        receive(&ledger, &mut order, two);
        say(&ledger, &order, Phase::Failed);
        assert_eq!(known(&ledger), (one.to_owned(), None), "two never was well");
        receive(&ledger, &mut order, three);
        say(&ledger, &order, Phase::Ready);
    }
    let ledger = ledger(folder.path());
    assert_eq!(known(&ledger), (three.to_owned(), Some(one.to_owned())));
    order.desired = Desired::Deleted { purge: true };
    order.generation.counter = 9;
    ledger.receive(&orders(2, vec![order.clone()]), &BTreeSet::new()).unwrap();
    ledger.receive(&orders(3, Vec::new()), &BTreeSet::from([order.id])).unwrap();
    ledger.retain_well().unwrap();
    assert!(ledger.well().is_empty());
}
