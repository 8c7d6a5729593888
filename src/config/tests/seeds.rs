//! The configurations of published guides, as they are written there: `CHATD_SEEDS_DIR` has the
//! guides. Host names, ports and secrets are filled in, nothing else.

use chatd_kit::guide::Guide;

use crate::{Assignment, Fleet, Member, Overrides, StreamName as S, TaskName as T};

fn fleet(guide: &Guide) -> Fleet {
    let files = guide.workers.iter().enumerate();
    let files: Vec<_> = files
        .map(|(index, worker)| {
            (format!("worker{index}.yaml"), serde_json::to_string(worker).unwrap())
        })
        .collect();
    let shared = serde_json::to_string(&guide.shared).unwrap();
    let mut texts = vec![("homeserver.yaml", shared.as_str())];
    texts.extend(files.iter().map(|(name, text)| (name.as_str(), text.as_str())));
    Fleet::from_texts(&texts, &Overrides::default()).unwrap()
}

/// A guide: how many pieces it has, and what some of its instances must get.
struct Expected {
    pieces: usize,
    instances: usize,
    writers: &'static [(S, &'static str)],
    runners: &'static [(T, &'static str)],
}

const GUIDES: [Expected; 5] = [
    Expected {
        pieces: 16,
        instances: 12,
        writers: &[(S::Events, "event_persister1 event_persister2"), (S::Typing, "main")],
        runners: &[
            (T::Cleanup, "background_worker"),
            (T::Pusher, "pusher_worker1 pusher_worker2"),
            (T::FederationSender, "federation_sender1 federation_sender2"),
            (T::UserDirectory, "worker_name"),
            (T::MediaCleanup, "media-repository-1"),
        ],
    },
    MARKDOWN,
    MARKDOWN,
    Expected {
        pieces: 9,
        instances: 10,
        writers: &[(S::Events, "event_persister1 event_persister2"), (S::Typing, "main")],
        runners: &[
            (T::BackgroundUpdates, "background_worker"),
            (T::Pusher, "pusher_worker1 pusher_worker2"),
            (T::FederationSender, "federation_sender1 federation_sender2"),
            (T::AppserviceSender, "main"),
        ],
    },
    Expected {
        pieces: 4,
        instances: 13,
        writers: &[
            (S::Events, "tasks1"),
            (S::Typing, "client_sync1"),
            (S::Receipts, "client_sync1"),
            (S::PushRules, "main"),
        ],
        runners: &[
            (T::FederationSender, "sender1 sender2 sender3 sender4"),
            (T::Pusher, "tasks1"),
            (T::UserDirectory, "client_sync1"),
            (T::MediaCleanup, "media1"),
        ],
    },
];

/// Two copies of one edition.
const MARKDOWN: Expected = Expected {
    pieces: 11,
    instances: 10,
    writers: &[(S::Events, "event_persister1 event_persister2"), (S::DeviceLists, "main")],
    runners: &[
        (T::Cleanup, "background_worker"),
        (T::Pusher, "pusher_worker1 pusher_worker2"),
        (T::FederationSender, "federation_sender1 federation_sender2"),
        (T::AppserviceSender, "worker_name"),
    ],
};

fn who(fleet: &Fleet, does: impl Fn(&Assignment) -> bool) -> String {
    let mut names: Vec<_> =
        fleet.members.iter().filter(|one| does(&one.assignment)).map(Member::name).collect();
    names.sort_unstable();
    names.join(" ")
}

#[test]
#[expect(clippy::print_stderr, reason = "whoever runs the tests should know that one was not")]
fn guides_start_unchanged() {
    let Some(folder) = std::env::var("CHATD_SEEDS_DIR").ok() else {
        eprintln!("CHATD_SEEDS_DIR is not set: the configurations of guides are not tried");
        return;
    };
    let guides = Guide::read_all(folder.as_ref());
    assert_eq!(guides.len(), GUIDES.len());
    for (guide, expected) in guides.iter().zip(GUIDES) {
        let what = guide.path.display();
        assert_eq!(guide.pieces, expected.pieces, "{what}");
        let fleet = fleet(guide);
        assert!(!fleet.has_errors(), "{what}: {:#?}", fleet.findings);
        for finding in &fleet.findings {
            let text = finding.to_string();
            assert!(!text.contains("is no key that"), "{what}: {text}");
        }
        for (stream, names) in expected.writers {
            assert_eq!(who(&fleet, |one| one.writes(*stream)), *names, "{what}: {stream}");
        }
        for (task, names) in expected.runners {
            assert_eq!(who(&fleet, |one| one.runs(*task)), *names, "{what}: {task}");
        }
        assert_eq!(fleet.members.len(), expected.instances, "{what}");
    }
}
