//! Leases, and what the server builds on them: locks and elections.

use std::time::{Duration, Instant};

use etcd_client::{
    Client, Error, EventType, GetOptions, KeyValue, LeaseGrantOptions, LeaseTimeToLiveOptions, LockOptions,
    ProclaimOptions, PutOptions, ResignOptions, WatchFilterType, WatchOptions,
};

use crate::{ANSWER_WITHIN, Failure, Outcome, next, told};

/// The least TTL that etcd grants, in seconds.
pub const SHORT_LEASE: i64 = 2;

/// An expired lease may be found out late, but not by more than this.
const EXPIRY_LATE_MAX: Duration = Duration::from_secs(5);

const CONTESTANTS: usize = 4;

/// How often each of them counts up what they share.
const TURNS: usize = 10;

pub async fn leases(client: &mut Client) -> Outcome {
    let granted = client.lease_grant(60, None).await?;
    let (id, attached) = (granted.id(), PutOptions::new().with_lease(granted.id()));
    let since = client.put("lease/a", "1", Some(attached.clone())).await?.header().ok_or("no header")?.revision();
    client.put("lease/b", "1", Some(attached)).await?;
    client.put("lease/a", "2", Some(PutOptions::new().with_ignore_lease())).await?;
    let got = client.get("lease/", Some(GetOptions::new().with_prefix())).await?;
    ensure!(got.kvs().len() == 2 && got.kvs().iter().all(|kv| kv.lease() == id), "two keys of {id}: {got:?}");
    let left = client.lease_time_to_live(id, Some(LeaseTimeToLiveOptions::new().with_keys())).await?;
    ensure!(left.granted_ttl() == 60 && (50..=60).contains(&left.ttl()), "time to live: {left:?}");
    let mut keys = left.keys().to_vec();
    keys.sort_unstable();
    ensure!(keys == [b"lease/a".to_vec(), b"lease/b".to_vec()], "keys of the lease: {keys:?}");
    ensure!(client.leases().await?.leases().iter().any(|lease| lease.id() == id), "the lease is not listed");

    let same = Some(LeaseGrantOptions::new().with_id(id));
    told(client.lease_grant(60, same).await.map(drop), 9, "etcdserver: lease already exists")?;
    client.lease_revoke(id).await?;
    let gone = deletions(client, "lease/", since, 2).await?;
    ensure!(gone[0].mod_revision() == gone[1].mod_revision(), "a revoke at two revisions: {gone:?}");
    told(client.lease_revoke(id).await.map(drop), 5, "etcdserver: requested lease not found")?;
    ensure!(client.lease_time_to_live(id, None).await?.ttl() == -1, "time to live of a lease that is gone");
    ensure!(client.lease_keep_alive(id).await.is_err(), "a lease that is gone is kept alive");
    Ok(())
}

/// One lease is kept alive while others run out twice; so it lives for longer than its TTL.
pub async fn keep_alive_and_expiry(client: &mut Client) -> Outcome {
    let kept = client.lease_grant(SHORT_LEASE, None).await?.id();
    client.put("lease/kept", "1", Some(PutOptions::new().with_lease(kept))).await?;
    let mut keeping = client.clone();
    let keeper = tokio::spawn(async move {
        let (mut keeper, mut answers) = keeping.lease_keep_alive(kept).await?;
        loop {
            tokio::time::sleep(Duration::from_millis(500)).await;
            keeper.keep_alive().await?;
            let answer = answers.message().await?.ok_or(Error::LeaseKeepAliveError("the stream ended".into()))?;
            if answer.ttl() != SHORT_LEASE {
                return Err::<(), _>(Error::LeaseKeepAliveError(format!("{answer:?}")));
            }
        }
    });
    for _ in 0..2 {
        let begun = Instant::now();
        let short = client.lease_grant(SHORT_LEASE, None).await?.id();
        let put = client.put("lease/short", "1", Some(PutOptions::new().with_lease(short))).await?;
        deletions(client, "lease/short", put.header().ok_or("no header")?.revision(), 1).await?;
        expiry_time("a lease", begun)?;
    }
    ensure!(client.get("lease/kept", None).await?.count() == 1, "the key of a lease that was kept alive is gone");
    ensure!(!keeper.is_finished(), "the keeper gave up: {:?}", keeper.await);
    keeper.abort();
    client.lease_revoke(kept).await?;
    Ok(())
}

fn expiry_time(what: &str, begun: Instant) -> Outcome {
    let (took, ttl) = (begun.elapsed(), Duration::from_secs(SHORT_LEASE.unsigned_abs()));
    ensure!(took >= ttl && took <= ttl + EXPIRY_LATE_MAX, "{what} of {ttl:?} ran out after {took:?}");
    Ok(())
}

/// Waits for so many deletions under a prefix from a revision on.
pub async fn deletions(client: &mut Client, prefix: &str, since: i64, count: usize) -> Result<Vec<KeyValue>, Failure> {
    let options = WatchOptions::new().with_prefix().with_start_revision(since);
    let options = options.with_filters([WatchFilterType::NoPut]);
    let mut stream = client.watch(prefix, Some(options)).await?;
    let mut gone = Vec::new();
    while gone.len() < count {
        for event in next(&mut stream).await?.events() {
            ensure!(event.event_type() == EventType::Delete, "a filtered event: {event:?}");
            gone.extend(event.kv().cloned());
        }
    }
    Ok(gone)
}

pub async fn locks(client: &mut Client) -> Outcome {
    client.put("lock/shared", "0", None).await?;
    let contestants: Vec<_> = (0..CONTESTANTS).map(|_| tokio::spawn(count_under_lock(client.clone()))).collect();
    for contestant in contestants {
        contestant.await??;
    }
    let counted = client.get("lock/shared", None).await?;
    let counted = counted.kvs()[0].value_str()?.to_owned();
    ensure!(
        counted == (CONTESTANTS * TURNS).to_string(),
        "{CONTESTANTS} times {TURNS} turns have counted to {counted}"
    );

    // Who holds a lock and falls silent loses it when his lease runs out, and not before.
    let begun = Instant::now();
    let silent = client.lease_grant(SHORT_LEASE, None).await?.id();
    client.lock("lock/silent", Some(LockOptions::new().with_lease(silent))).await?;
    // Without a lease of its own a lock gets one from the server.
    let had = client.lock("lock/silent", None).await?;
    expiry_time("a lock", begun)?;
    client.unlock(had.key()).await?;
    let unknown = Some(LockOptions::new().with_lease(77));
    // etcd passes on what its own client is told, without the code.
    told(client.lock("lock/silent", unknown).await.map(drop), 2, "etcdserver: requested lease not found")
}

async fn count_under_lock(mut client: Client) -> Result<(), Failure> {
    let lease = client.lease_grant(60, None).await?.id();
    for _ in 0..TURNS {
        let locked = client.lock("lock/of", Some(LockOptions::new().with_lease(lease))).await?;
        // Read and write are two steps, which the lock alone holds together.
        let now: usize = client.get("lock/shared", None).await?.kvs()[0].value_str()?.parse()?;
        client.put("lock/shared", (now + 1).to_string(), None).await?;
        client.unlock(locked.key()).await?;
    }
    client.lease_revoke(lease).await?;
    Ok(())
}

pub async fn elections(client: &mut Client) -> Outcome {
    told(client.leader("post").await.map(drop), 2, "election: no leader")?;
    let (first, second) = (client.lease_grant(60, None).await?.id(), client.lease_grant(60, None).await?.id());
    let elected = client.campaign("post", "first", first).await?;
    let mut observed = client.observe("post").await?;
    let mut leads = async |who: &str| -> Outcome {
        let told =
            tokio::time::timeout(ANSWER_WITHIN, observed.message()).await.map_err(|_| "nothing is observed")??;
        let leader = told.as_ref().and_then(|told| told.kv()).ok_or("an observation of nobody")?;
        ensure!(leader.value_str()? == who, "observed: expected {who}, got {leader:?}");
        Ok(())
    };
    leads("first").await?;
    let mut standing = client.clone();
    let waiting = tokio::spawn(async move { standing.campaign("post", "second", second).await });
    // The second stands when its key is there.
    let since = elected.header().ok_or("no header")?.revision();
    let options = WatchOptions::new().with_start_revision(since);
    let mut stands = client.watch(format!("post/{second:x}"), Some(options)).await?;
    while next(&mut stands).await?.events().is_empty() {}
    let leader = elected.leader().ok_or("no leader key")?.clone();
    client.proclaim("still the first", Some(ProclaimOptions::new().with_leader(leader.clone()))).await?;
    leads("still the first").await?;
    ensure!(!waiting.is_finished(), "the second is elected beside the first");
    client.resign(Some(ResignOptions::new().with_leader(leader.clone()))).await?;
    let elected =
        tokio::time::timeout(ANSWER_WITHIN, waiting).await.map_err(|_| "the second is never elected")???;
    ensure!(elected.leader().ok_or("no leader key")?.lease() == second, "elected: {elected:?}");
    leads("second").await?;
    let late = client.proclaim("late", Some(ProclaimOptions::new().with_leader(leader))).await;
    told(late.map(drop), 2, "election: not leader")?;

    // Whose lease ends has resigned.
    client.lease_revoke(second).await?;
    told(client.leader("post").await.map(drop), 2, "election: no leader")?;
    client.lease_revoke(first).await?;
    Ok(())
}
