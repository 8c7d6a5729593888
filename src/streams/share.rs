//! Who should own which shard: the same answer on every instance that sees the same map and the
//! same candidates. Shares differ by one shard at most, and no shard moves that need not.

use chatd_storage::shards::Shard;

/// The owner that each of `shards` should have, in their order; nobody without candidates.
/// `candidates` must be without repeats.
pub(crate) fn desired<'a>(shards: &[Shard], candidates: &[&'a str]) -> Vec<Option<&'a str>> {
    let mut candidates = candidates.to_vec();
    candidates.sort_unstable();
    if candidates.is_empty() {
        return vec![None; shards.len()];
    }
    let owner_of = |shard: &Shard| candidates.iter().position(|name| *name == shard.owner);
    let mut room_for = quotas(shards, &candidates);
    // Everybody keeps what they have, up to their quota.
    let mut owners: Vec<Option<usize>> = shards
        .iter()
        .map(|shard| {
            let owner = owner_of(shard)?;
            room_for[owner] = room_for[owner].checked_sub(1)?;
            Some(owner)
        })
        .collect();
    // The rest goes, in order, to whoever has room.
    let mut next = 0;
    for owner in owners.iter_mut().filter(|owner| owner.is_none()) {
        while room_for[next] == 0 {
            next += 1;
        }
        room_for[next] -= 1;
        *owner = Some(next);
    }
    owners.into_iter().map(|owner| owner.map(|index| candidates[index])).collect()
}

/// How many shards each candidate should have. Those that have most get the ones that are left
/// over.
fn quotas(shards: &[Shard], candidates: &[&str]) -> Vec<usize> {
    let has = |name: &str| shards.iter().filter(|shard| shard.owner == name).count();
    let mut by_size: Vec<usize> = (0..candidates.len()).collect();
    by_size.sort_by_key(|index| std::cmp::Reverse(has(candidates[*index])));
    let each = shards.len() / candidates.len();
    let mut quotas = vec![each; candidates.len()];
    for index in by_size.into_iter().take(shards.len() % candidates.len()) {
        quotas[index] += 1;
    }
    quotas
}

/// How strongly an instance is drawn to something that one of several gets: the strongest has it,
/// so that different things go to different instances.
pub fn weight(instance: &str, what: &str) -> u64 {
    // FNV-1a: the same everywhere and in every release.
    let bytes = instance.bytes().chain([0]).chain(what.bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use chatd_base::ShardId;
    use proptest::prelude::*;

    use super::*;

    const NAMES: [&str; 9] = ["a", "b", "c", "d", "e", "f", "g", "h", "i"];

    fn map(owners: &[usize]) -> Vec<Shard> {
        let owner = |index: &usize| NAMES.get(*index).copied().unwrap_or_default().to_owned();
        let shard = |(id, index)| Shard { id: ShardId(id), owner: owner(index), epoch: 0 };
        (0_i16..).zip(owners).map(shard).collect()
    }

    /// Any map of 64 shards, some without owner, and some candidates in any order.
    fn maps() -> impl Strategy<Value = (Vec<Shard>, Vec<&'static str>)> {
        let owners = prop::collection::vec(0..=NAMES.len(), 64).prop_map(|owners| map(&owners));
        let some = prop::sample::subsequence(NAMES.to_vec(), 1..=NAMES.len());
        (owners, some.prop_shuffle())
    }

    fn count(owners: &[Option<&str>], name: &str) -> usize {
        owners.iter().filter(|owner| **owner == Some(name)).count()
    }

    fn given(shards: &[Shard], owners: &[Option<&str>]) -> Vec<Shard> {
        let give = |(shard, owner): (&Shard, &Option<&str>)| Shard {
            owner: owner.unwrap_or_default().to_owned(),
            ..shard.clone()
        };
        shards.iter().zip(owners).map(give).collect()
    }

    proptest! {
        #[test]
        fn shares_are_equal((shards, candidates) in maps()) {
            let owners = desired(&shards, &candidates);
            let shares: Vec<usize> = candidates.iter().map(|name| count(&owners, name)).collect();
            prop_assert_eq!(shares.iter().sum::<usize>(), shards.len());
            prop_assert!(shares.iter().max().unwrap() - shares.iter().min().unwrap() <= 1);
        }

        #[test]
        fn nothing_moves_that_need_not((shards, candidates) in maps()) {
            let owners = desired(&shards, &candidates);
            let moved = shards.iter().zip(&owners).filter(|(s, o)| Some(&*s.owner) != **o).count();
            // Whoever ends with n shards got at least those that they had not before.
            let missing: usize = candidates.iter().map(|name| {
                let had = shards.iter().filter(|shard| shard.owner == *name).count();
                count(&owners, name).saturating_sub(had)
            }).sum();
            prop_assert_eq!(moved, missing);
            // And no other balanced shares would need fewer moves.
            let each = shards.len() / candidates.len();
            let mut had: Vec<usize> = candidates.iter()
                .map(|name| shards.iter().filter(|shard| shard.owner == *name).count()).collect();
            had.sort_unstable_by(|a, b| b.cmp(a));
            let extra = shards.len() % candidates.len();
            let least: usize = had.iter().enumerate()
                .map(|(at, had)| (each + usize::from(at < extra)).saturating_sub(*had)).sum();
            prop_assert_eq!(moved, least);
        }

        #[test]
        fn all_come_to_the_same_map_and_stay_there((shards, candidates) in maps()) {
            let owners = desired(&shards, &candidates);
            let mut turned = candidates.clone();
            turned.reverse();
            prop_assert_eq!(&desired(&shards, &turned), &owners);
            prop_assert_eq!(desired(&given(&shards, &owners), &candidates), owners);
        }
    }

    #[test]
    fn without_candidates_nobody_owns() {
        assert_eq!(desired(&map(&[0, 1]), &[]), [None, None]);
    }
}
